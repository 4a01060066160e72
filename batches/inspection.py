"""Look at an input file before it runs: faults, tokens, shared prefixes. Pure: no Django.

Runs as `python -m batches.inspection`: the request as one line of JSON on standard input, the report on standard
output. A process of its own, because a tokenizer takes a second to import and a core or two to run. It ends when its
standard input does.
"""

import json
import os
import resource
import sys
import threading
from array import array
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from batches.planning import Plan, PlannedLine
from batches.tokens import NotCounted, Tokenizer
from batches.validation import LineError, RequestLine, Validator
from files.jsonl import iter_lines

CPU_SECONDS = 600  # the most that one may take; 50,000 lines of 1.6 kB take about 25
MAX_LISTED = 500  # lines listed that do not fit, as many as faults
_TEXT_BYTES = 1 << 20  # of texts counted at a time: the tokenizer's own notes on them take a hundred times as much
_WAITING = 2  # such portions on their way
_GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


class EngineFacts(msgspec.Struct):
    """Of one model, what the parent knows."""

    source: str
    arguments: tuple[str, ...]
    context: int | None


class Request(msgspec.Struct):
    """What to look at."""

    descriptor: int
    endpoint: str
    model: str
    share_answers: bool
    allow_mixed_models: bool
    skip: bool
    catalogue: dict[str, set[str]]
    engines: dict[str, EngineFacts]


class TooLong(msgspec.Struct):
    """A line that the model's context can't hold."""

    line: int
    custom_id: str
    prompt_tokens: int
    max_output_tokens: int | None


class ModelReport(msgspec.Struct):
    """What the lines of one model come to; see PreflightModelDict."""

    model: str
    requests: int
    duplicates: int
    prompt_tokens: int | None
    prompt_tokens_reason: str | None
    not_counted: dict[str, int]
    context: int | None
    too_long: list[TooLong]
    too_long_total: int
    max_output_tokens: int
    without_max_output_tokens: int
    shared_prefix: float


class Report(msgspec.Struct):
    """What the file comes to."""

    ok: bool
    requests: int
    invalid: int
    errors: list[LineError]
    total_errors: int
    endpoints: dict[str, int]
    models: list[ModelReport]


class _Named(msgspec.Struct):
    url: str


@dataclass
class _Lines:
    """The lines of one model as they are counted; indexes are those of its plan."""

    engine: EngineFacts
    tokenizer: Tokenizer | None = None
    reason: str | None = None
    tokens: "array[int]" = field(default_factory=lambda: array("Q"))  # of all prompts of a line
    longest: "array[int]" = field(default_factory=lambda: array("Q"))  # of its longest prompt
    not_counted: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        try:
            self.tokenizer = Tokenizer(self.engine.source, self.engine.arguments)
        except NotCounted as why:
            self.reason = str(why)

    def note(self, index: int, tokens: int) -> None:
        """Add one prompt to a line."""
        self.tokens[index] += tokens
        self.longest[index] = max(self.longest[index], tokens)


_Portion = list[tuple[_Lines, int, str]]


class _Counting:
    """Counts tokens beside the thread that reads: the tokenizer lets go of the interpreter while it works."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._running: deque[Future[None]] = deque()
        self._waiting: dict[tuple[int, bool], _Portion] = {}
        self._sizes: Counter[tuple[int, bool]] = Counter()

    def add(self, lines: _Lines, index: int, text: str, special: bool) -> None:
        """Take one text."""
        key = (id(lines), special)
        self._waiting.setdefault(key, []).append((lines, index, text))
        self._sizes[key] += len(text)
        if self._sizes[key] >= _TEXT_BYTES:
            self._start(key)

    def finish(self) -> None:
        """Wait until all is counted."""
        for key in list(self._waiting):
            self._start(key)
        while self._running:
            self._running.popleft().result()

    def _start(self, key: tuple[int, bool]) -> None:
        del self._sizes[key]
        self._running.append(self._pool.submit(self._count, self._waiting.pop(key), key[1]))
        if len(self._running) > _WAITING:
            self._running.popleft().result()

    @staticmethod
    def _count(portion: _Portion, special: bool) -> None:
        lines = portion[0][0]
        if lines.tokenizer is not None:
            counts = lines.tokenizer.count([text for _, _, text in portion], special)
            for (_, index, _), tokens in zip(portion, counts, strict=True):
                lines.note(index, tokens)


class Inspection:
    """One pass over a file."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._lines: dict[str, _Lines] = {}
        self._counting = _Counting()
        self._urls: Counter[str] = Counter()
        self._validator = Validator(
            request.endpoint,
            request.catalogue,
            request.model,
            share_answers=request.share_answers,
            allow_mixed_models=request.allow_mixed_models,
            skip=(lambda error, place, raw: None) if request.skip else None,
            answered=self._take,
            counts_all=True,
        )

    def run(self) -> Report:
        """Return the report."""
        validator = self._validator
        with open(self._request.descriptor, "rb", closefd=False) as stream:
            for number, offset, raw in iter_lines(stream):
                validator.feed(number, offset, raw)
                if validator.full:
                    break
                self._note_url(raw)
        validator.finish()
        self._counting.finish()
        return Report(
            ok=not validator.failed,
            requests=validator.requests,
            invalid=validator.invalid,
            errors=validator.errors,
            total_errors=validator.invalid + sum(error.line is None for error in validator.errors),
            endpoints=dict(self._urls.most_common()),
            models=[self._model(name, plan) for name, plan in validator.plans.items()],
        )

    def _note_url(self, raw: bytes | None) -> None:
        try:
            # No more names than a person would read.
            url = msgspec.json.decode(raw or b"", type=_Named).url[:200]
            self._urls[url if url in self._urls or len(self._urls) < 20 else "others"] += 1
        except (msgspec.MsgspecError, RecursionError):
            return

    def _take(self, place: PlannedLine, line: RequestLine, model: str) -> bool:
        """Count a good line; it stays in the plan."""
        lines = self._lines.get(model)
        if lines is None:
            lines = self._lines[model] = _Lines(self._request.engines[model])
        index = len(lines.tokens)
        lines.tokens.append(0)
        lines.longest.append(0)
        if lines.tokenizer is None:
            return False
        try:
            texts, lengths, special = lines.tokenizer.prompts(line.url, msgspec.json.decode(line.body))
        except NotCounted as why:
            lines.not_counted[str(why)] += 1
            return False
        except (msgspec.MsgspecError, RecursionError):
            lines.not_counted["A number in it is out of range, or it is nested too deep."] += 1
            return False
        for length in lengths:
            lines.note(index, length)
        for text in texts:
            self._counting.add(lines, index, text, special)
        return False

    def _model(self, name: str, plan: Plan) -> ModelReport:
        lines = self._lines[name]
        counted = lines.tokenizer is not None and sum(lines.not_counted.values()) < len(plan)
        # Without tokens, bytes say which part of the work is shared.
        weights = lines.tokens if counted else plan.sizes
        shared = whole = 0.0
        for index, part in plan.shared():
            shared += part * weights[index]
            whole += weights[index]
        too_long = list(self._too_long(lines, plan))
        return ModelReport(
            model=name,
            requests=len(plan),
            duplicates=plan.repeated,
            prompt_tokens=sum(lines.tokens) if counted else None,
            prompt_tokens_reason=None if counted else (lines.reason or next(iter(lines.not_counted), None)),
            not_counted=dict(lines.not_counted),
            context=lines.engine.context,
            too_long=[self._describe(*found) for found in too_long[:MAX_LISTED]],
            too_long_total=len(too_long),
            max_output_tokens=sum(plan.generates),
            without_max_output_tokens=plan.generates.count(0),
            shared_prefix=round(shared / whole, 4) if whole else 0.0,
        )

    def _too_long(self, lines: _Lines, plan: Plan) -> Iterator[tuple[PlannedLine, int, int]]:
        """Yield the place, the tokens and the limit of each line that the engine would refuse for its length."""
        context = lines.engine.context
        if context is None:
            return
        # A generating model needs room for one token at least.
        most = context - (self._request.endpoint in _GENERATING)
        for index in range(len(plan)):
            if lines.longest[index] > most or plan.generates[index] > context:
                place = PlannedLine(plan.numbers[index], plan.offsets[index], plan.lengths[index])
                yield place, lines.longest[index], plan.generates[index]

    def _describe(self, place: PlannedLine, tokens: int, limit: int) -> TooLong:
        raw = os.pread(self._request.descriptor, place.length, place.offset)
        custom_id = msgspec.json.decode(raw, type=RequestLine).custom_id
        return TooLong(place.number, custom_id[:200], tokens, limit or None)


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock a thread that waits would hold until the interpreter's end.
    while os.read(0, 1):
        continue
    os._exit(1)


def main() -> None:
    """Read the request, write the report."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.nice(5)  # after the web server and the engines
    request = msgspec.json.decode(sys.stdin.buffer.readline(), type=Request)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    report: Any = msgspec.to_builtins(Inspection(request).run())
    sys.stdout.buffer.write(json.dumps(report).encode())
    sys.stdout.flush()


if __name__ == "__main__":
    main()
