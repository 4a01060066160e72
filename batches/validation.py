"""Check the lines of an input file (contract.md 3). Pure: no Django, no file system.

One pass, every bad line reported, nothing kept of a line but its place and a digest of its custom_id.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec

from batches.bodies import Body, answer_digest, read_body
from batches.planning import Plan, PlannedLine, PlannedShard
from vbatch_site.openai import wording

MAX_REQUESTS = 50_000
MAX_EMBEDDING_INPUTS = 50_000
_NUMBER = b"-0123456789"  # the bytes that one begins with
MAX_ERRORS = 500  # listed; a file with more is as clear with these

# What a line may ask for: the fields its body must have, and the name that OpenAI's sentences give the endpoint.
RUNNABLE: dict[str, tuple[tuple[str, ...], str]] = {
    "/v1/chat/completions": (("messages",), "Chat Completions"),
    "/v1/completions": (("prompt",), "Completions"),
    "/v1/responses": (("input",), "Responses"),
    "/v1/embeddings": (("input",), "Embeddings"),
    "/v1/score": ((), "Score"),
    "/v1/rerank": (("query", "documents"), "Rerank"),
}
# Accepted as values at creation (contract.md 2.1), also those that no engine here answers.
OPENAI_ENDPOINTS = (
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
)
ENDPOINTS = (*OPENAI_ENDPOINTS, "/v1/score", "/v1/rerank")

Catalogue = Mapping[str, Set[str]]  # model name -> endpoints it answers


class LineError(msgspec.Struct, frozen=True):
    """One entry of the batch's `errors.data`."""

    code: str
    message: str
    param: str | None
    line: int | None


class RequestLine(msgspec.Struct):
    """A line as it is run: the body stays the bytes that the user wrote."""

    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


_line_decoder = msgspec.json.Decoder(RequestLine)
_items_decoder = msgspec.json.Decoder(list[msgspec.Raw])

_FIELDS: tuple[tuple[str, type, str], ...] = (
    ("custom_id", str, "a string"),
    ("method", str, "a string"),
    ("url", str, "a string"),
    ("body", dict, "an object"),
)


class _Invalid(Exception):
    """A fault of one line: code, message, param."""

    def __init__(self, code: str, message: str, param: str | None) -> None:
        super().__init__(code)
        self.code, self.message, self.param = code, message, param


def _wrong_type(param: str, expected: str, value: object) -> _Invalid:
    return _Invalid("invalid_type", wording.wrong_type(param, expected, value), param)


def _missing(name: str, param: str) -> _Invalid:
    return _Invalid("missing_required_parameter", wording.missing(name), param)


_NOT_JSON = _Invalid("invalid_json_line", "This line is not parseable as valid JSON.", None)


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _explain(raw: bytes) -> _Invalid:
    """Return what is wrong with a line that the typed decoder refused."""
    try:
        line = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _NOT_JSON
    if not isinstance(line, dict):
        return _Invalid("invalid_request", "Each line must be a JSON object.", None)
    for name, _, _ in _FIELDS:
        if name not in line:
            return _missing(name, name)
    for name, kind, expected in _FIELDS:
        if not isinstance(line[name], kind):
            return _wrong_type(name, expected, line[name])
    # Valid for the standard library only: lone surrogates, for one, which no UTF-8 answer file could carry.
    return _NOT_JSON


def _explain_body(raw: bytes) -> _Invalid:
    """Return what is wrong with a body that the typed decoder refused."""
    try:
        body = json.loads(raw, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return _NOT_JSON
    if not isinstance(body, dict):
        return _wrong_type("body", "an object", body)
    model = body.get("model")
    return _wrong_type("body.model", "a string", model) if "model" in body and not isinstance(model, str) else _NOT_JSON


def parse_line(raw: bytes) -> RequestLine:
    """Return a line that was validated before."""
    return _line_decoder.decode(raw)


def read_custom_id(raw: bytes | None) -> str | None:
    """Return the custom_id of a line that may have any fault, None where there is none that could be stored."""
    try:
        line = json.loads(raw or b"")
        custom_id = line.get("custom_id") if isinstance(line, dict) else None
        # Lone surrogates and U+0000 can be in no file or row of ours.
        storable = isinstance(custom_id, str) and "\0" not in custom_id and custom_id.encode()
    except (ValueError, RecursionError):
        return None
    return custom_id if storable or custom_id == "" else None


def count_inputs(raw: msgspec.Raw) -> int:
    """Return how many texts an embeddings request asks for."""
    if not bytes(raw).startswith(b"["):
        return 1
    items = _items_decoder.decode(raw)
    # Numbers are the tokens of one text.
    return 1 if items and bytes(items[0])[:1] in _NUMBER else len(items)


# What is told of a bad line that the batch runs without: its fault, its place and its bytes.
InvalidLine = Callable[[LineError, PlannedLine, bytes | None], None]
# Asked of each good line and its model: whether it has an answer already, so that it need not run.
AnsweredLine = Callable[[PlannedLine, RequestLine, str], bool]


@dataclass
class Validator:
    """Collects the faults and the plans of one file, fed line by line.

    With `skip` a bad line is handed to it and fails alone. A line that `answered` takes is not in the plan.
    `counts_all` reads on when the list of faults is full.
    """

    endpoint: str
    catalogue: Catalogue
    default_model: str = ""
    share_answers: bool = True
    allow_mixed_models: bool = False
    skip: InvalidLine | None = None
    answered: AnsweredLine | None = None
    counts_all: bool = False
    errors: list[LineError] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    models: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    invalid: int = 0
    carried: int = 0
    failed: bool = False
    _model: str | None = None
    _inputs: int = 0
    _seen: set[bytes] = field(default_factory=set)

    @property
    def full(self) -> bool:
        """Whether reading on can add nothing to the report."""
        enough = len(self.errors) >= MAX_ERRORS and self.skip is None and not self.counts_all
        return self.requests > MAX_REQUESTS or enough

    @property
    def model(self) -> str | None:
        """The one model that all good lines name, None when there are several."""
        return next(iter(self.models)) if len(self.models) == 1 else None

    @property
    def valid(self) -> int:
        """How many lines are good."""
        return min(self.requests, MAX_REQUESTS) - self.invalid

    def shards(self) -> Iterator[PlannedShard]:
        """Yield the lines to run, model by model."""
        for model, plan in self.plans.items():
            yield from plan.shards(model)

    def feed(self, number: int, offset: int, raw: bytes | None) -> None:
        """Check one physical line; blank ones are skipped, and None is a line too long to be held."""
        if raw is not None and not raw.strip():
            return
        self.requests += 1
        if self.requests > MAX_REQUESTS:
            return
        place = PlannedLine(number, offset, len(raw or b""))
        try:
            if raw is None:
                raise _Invalid("line_too_long", "This line is longer than 32 MiB.", None)
            line, body = self._check(raw)
        except _Invalid as fault:
            # A message may quote the line, and Postgres takes no U+0000.
            message = fault.message.replace("\0", "\ufffd")
            self._refuse(LineError(fault.code, message, fault.param, number), place, raw)
        else:
            self._accept(place, line, body)

    def finish(self) -> None:
        """Add the faults of the file as a whole, and say whether the batch fails."""
        whole: list[LineError] = []
        if self._inputs > MAX_EMBEDDING_INPUTS:
            message = (
                f"The input file has more than the {MAX_EMBEDDING_INPUTS:,} embedding inputs that a batch may have."
            )
            whole.append(LineError("too_many_inputs", message, None, None))
        if self.requests > MAX_REQUESTS:
            message = f"The input file has more than the {MAX_REQUESTS:,} requests that a batch may have."
            whole.append(LineError("too_many_requests", message, None, None))
        if self.requests == 0:
            message = "The input file is empty. Please ensure that the batch contains at least one request."
            whole.append(LineError("empty_file", message, None, None))
        self.errors[:0] = whole
        del self.errors[MAX_ERRORS:]
        self.failed = bool(whole) or (bool(self.invalid) and (self.skip is None or not self.valid))

    def _refuse(self, error: LineError, place: PlannedLine, raw: bytes | None) -> None:
        self.invalid += 1
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(error)
        if self.skip is not None:
            self.skip(error, place, raw)

    def _accept(self, place: PlannedLine, line: RequestLine, body: Body) -> None:
        model = body.model or self.default_model
        self._model = self._model or model
        if self.endpoint == "/v1/embeddings" and isinstance(body.input, msgspec.Raw):
            self._inputs += count_inputs(body.input)
        self.models[model] += 1
        if self.answered is not None and self.answered(place, line, model):
            self.carried += 1
            return
        same = self.share_answers and body.is_deterministic(self.endpoint)
        self.plans.setdefault(model, Plan()).add(
            place, body.prompt_bytes(), body.most_tokens(), answer_digest(line.body) if same else None
        )

    def _check(self, raw: bytes) -> tuple[RequestLine, Body]:
        try:
            line = _line_decoder.decode(raw)
            # Skipped strings are not decoded by the parser, and the engine would refuse what is not UTF-8.
            raw.isascii() or raw.decode()
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise _explain(raw) from None
        if line.method != "POST":
            message = f"Invalid method: '{line.method[:200]}'. Only 'POST' is supported."
            raise _Invalid("invalid_method", message, "method")
        if line.url != self.endpoint:
            message = "The URL provided for this request does not match the batch endpoint."
            raise _Invalid("invalid_url", message, "url")
        body = self._check_body(line.body)
        if "\0" in line.custom_id:
            message = "Invalid 'custom_id': the character U+0000 can't be stored."
            raise _Invalid("invalid_value", message, "custom_id")
        digest = blake2b(line.custom_id.encode(), digest_size=16).digest()
        if digest in self._seen:
            shown = line.custom_id[:200]
            message = (
                f"The custom_id '{shown}' for this request is a duplicate of another request. "
                "The custom_id parameter must be unique for each request in a batch."
            )
            raise _Invalid("duplicate_custom_id", message, "custom_id")
        self._seen.add(digest)
        return line, body

    def _check_body(self, raw: msgspec.Raw) -> Body:
        try:
            body = read_body(raw)
        except (msgspec.MsgspecError, RecursionError):
            raise _explain_body(bytes(raw)) from None
        required, title = RUNNABLE.get(self.endpoint, ((), "This endpoint"))
        self._check_model(body.model or self.default_model)
        if body.stream not in (msgspec.UNSET, None, False):
            message = f"{title}: Streaming is not supported in the Batch API."
            raise _Invalid("streaming_unsupported", message, "body.stream")
        for name in required:
            if getattr(body, name) is msgspec.UNSET:
                raise _missing(name, f"body.{name}")
        return body

    def _check_model(self, model: str) -> None:
        if not model:
            raise _missing("model", "body.model")
        if model not in self.catalogue:
            message = f"The provided model '{model[:200]}' is not supported by the Batch API."
            raise _Invalid("model_not_found", message, "body.model")
        if self.endpoint not in self.catalogue[model]:
            message = f"The model '{model}' does not answer '{self.endpoint}' on this server."
            raise _Invalid("endpoint_not_supported", message, "body.model")
        if self.allow_mixed_models:
            return
        if self._model is None and self.skip is None:
            self._model = model
        elif self._model is not None and model != self._model:
            message = (
                f"The model '{model}' for this request does not match the rest of the batch. "
                "Each batch must contain requests for a single model."
            )
            raise _Invalid("mismatched_model", message, "body.model")
