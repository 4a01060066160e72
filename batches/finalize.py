"""End a batch: results become the output and the error file, and status and file ids appear in one transaction.

Every step can be repeated: the files have names made from the batch's id, so a second attempt after a crash writes
over the first one's, and nothing is visible before the last step.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, BinaryIO

import msgspec
from django.db import transaction
from django.utils import timezone

from batches import answers, leases, line_index, ordering, wire
from batches.line_index import ERROR, OUTPUT
from batches.line_index import Entry as IndexedLine
from batches.locks import batch_lock
from batches.models import Batch, Result, ResultIndex, Shard, StaleTransition
from batches.ordering import Entry
from batches.outcome import Outcome
from batches.planning import PlannedLine, in_file_order, unpack
from batches.states import BatchStatus
from batches.validation import parse_line
from files import storage
from files.models import BATCH_FILE_LIFE, File, Purpose
from vbatch_site.openai import ids

_CHUNK = 500  # results held in memory at a time
_PURGE_CHUNK = 5000  # rows deleted at a time, so that no lock or transaction grows with the batch


@dataclass
class _Written:
    """One file being written, made only when it gets its first line."""

    name: str
    stack: ExitStack
    entries: list[Entry]
    is_errors: bool = False
    writer: storage.Writer | None = None
    size: int = 0
    lines: int = 0

    def add(self, position: int, line: bytes) -> None:
        self.entries.append(Entry(position, self.is_errors, self.size))
        self.append(line)

    def append(self, line: bytes) -> None:
        if self.writer is None:
            self.writer = self.stack.enter_context(storage.writing(self.name))
        self.writer.write(line)
        self.size += len(line)
        self.lines += 1


@dataclass
class _Totals:
    """What the finished batch reports, counted from the rows and not from the running counters."""

    completed: int = 0
    failed: int = 0
    dropped: int = 0  # cancelled or too late before they ran
    usage: wire.Usage = field(default_factory=wire.Usage)


def finalize(batch_id: str) -> bool:
    """Write the files of a batch that is done, cancelled or expired; return whether it ended here.

    False means that another process is at it, or that a worker still holds lines of it and will ring again.
    """
    closed = False
    while not closed:
        with batch_lock(batch_id) as mine:
            if not mine:
                return False
            batch = Batch.objects.filter(pk=batch_id).first()
            if batch is None or batch.status not in (BatchStatus.FINALIZING, BatchStatus.CANCELLING):
                return False
            closed = leases.close_shards(batch_id)
            if closed:
                _write(batch)
        # A worker that let go while the lock was held rang for nobody: look again before leaving.
        if not closed and leases.are_held(batch_id):
            return False
    purge(batch_id)
    return True


def file_names(batch_id: str) -> dict[str, str]:
    """Return the names in the storage of a batch's two files."""
    return {kind: f"batches/{batch_id}_{kind}.jsonl" for kind in ("output", "error")}


def _write(batch: Batch) -> None:
    names = file_names(batch.pk)
    entries: list[Entry] = []
    left_error = wire.CANCELLED
    if batch.status == BatchStatus.FINALIZING:
        left_error = (batch.abort_code, batch.abort_message) if batch.abort_code else wire.EXPIRED
    with ExitStack() as stack:
        output = _Written(names["output"], stack, entries)
        errors = _Written(names["error"], stack, entries, is_errors=True)
        index = _Written(line_index.name_for(batch.pk), stack, [])
        totals = _write_lines(batch, output, errors, index, left_error)
    _publish(batch, output, errors, totals)


def _write_lines(
    batch: Batch, output: _Written, errors: _Written, index: _Written, left_error: tuple[str, str]
) -> _Totals:
    """Write each line of the input to one of the two files; return the counts."""
    totals, left = _Totals(), 0
    # Nobody holds a lease any more, so this is the last position; lines that never ran come after it.
    committed = Batch.objects.values_list("committed", flat=True).get(pk=batch.pk)
    plan = in_file_order(Shard.objects.filter(batch=batch).values_list("lines", flat=True))
    reasons = _reasons(batch.pk)
    results = _results(batch.pk)
    nothing: tuple[int, Outcome | None] = (0, None)
    position, result = next(results, nothing)
    with _InputLines(batch) as source:
        for line in plan:
            if result is None or result.line != line.number:
                left += 1
                name = answers.line_id(batch, committed + left)
                custom_id = source.custom_id(line)
                error = reasons.get(line.number, left_error)
                text = wire.error_line(name, custom_id, *error, None if custom_id is not None else line.number)
                indexed = IndexedLine(line.number, ERROR, errors.size, len(text), line.offset, line.length)
                index.append(line_index.pack(indexed._replace(code=error[0], custom_id=custom_id or "")))
                errors.add(committed + left, text)
                # A line that the engine could not be had for failed; one that was cancelled or too late did not.
                if error in (wire.CANCELLED, wire.EXPIRED):
                    totals.dropped += 1
                else:
                    totals.failed += 1
                continue
            target = output if result.succeeded else errors
            text = answers.line_of(batch, position, result)
            index.append(line_index.pack(_indexed(line, result, target.size, len(text))))
            target.add(position, text)
            _count(totals, result)
            position, result = next(results, nothing)
    return totals


def _reasons(batch_id: str) -> dict[int, tuple[str, str]]:
    """Return why the lines of models that were given up never ran, by line number; there are seldom any."""
    given_up = Shard.objects.filter(batch_id=batch_id).exclude(abort_code="")
    reasons: dict[int, tuple[str, str]] = {}
    for lines, code, message in given_up.values_list("lines", "abort_code", "abort_message"):
        reasons.update(dict.fromkeys((line.number for line in unpack(lines)), (code, message)))
    return reasons


def _indexed(line: PlannedLine, result: Outcome, offset: int, length: int) -> IndexedLine:
    return IndexedLine(
        line=line.number,
        file=OUTPUT if result.succeeded else ERROR,
        offset=offset,
        length=length,
        input_offset=line.offset,
        input_length=line.length,
        status_code=result.status_code or 0,
        attempts=result.attempts,
        milliseconds=result.milliseconds,
        input_tokens=result.input_tokens,
        cached_tokens=result.cached_tokens,
        output_tokens=result.output_tokens,
        code=result.failure_code,
        finish_reason=line_index.finish_reason(bytes(result.body or b"")),
        custom_id=result.custom_id or "",
    )


def _count(totals: _Totals, result: Outcome) -> None:
    if not result.succeeded:
        totals.failed += 1
        return
    totals.completed += 1
    totals.usage.input_tokens += result.input_tokens
    totals.usage.cached_tokens += result.cached_tokens
    totals.usage.output_tokens += result.output_tokens
    totals.usage.reasoning_tokens += result.reasoning_tokens


def _results(batch_id: str) -> Iterator[tuple[int, Outcome]]:
    """Yield a batch's results and their positions by line number, a chunk in memory at a time."""
    # Rows and not objects: there are 50,000 of them, and a person waits.
    rows = Result.objects.filter(batch_id=batch_id).order_by("line").values_list("position", *Outcome._fields)
    last = 0
    while chunk := list(rows.filter(line__gt=last)[:_CHUNK]):
        for position, *fields in chunk:
            result = Outcome(*fields)
            yield position, result
            last = result.line


class _InputLines:
    """Reads custom_ids of lines that have no result; the input is opened only if there are any."""

    def __init__(self, batch: Batch) -> None:
        self._file_id = batch.input_file_id
        self._stack = ExitStack()
        self._stream: BinaryIO | None = None
        self._is_lost = False

    def __enter__(self) -> "_InputLines":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def custom_id(self, line: PlannedLine) -> str | None:
        """Return the custom_id of a line of the input, None where the input can't be read any more."""
        if self._is_lost:
            return None
        try:
            if self._stream is None:
                path = File.objects.values_list("path", flat=True).get(pk=self._file_id)
                self._stream = self._stack.enter_context(storage.opened(path))
            self._stream.seek(line.offset)
            return parse_line(self._stream.read(line.length)).custom_id
        except (File.DoesNotExist, FileNotFoundError):
            # Other faults of a storage pass; bytes that are gone must not keep what was finished from its owner.
            self._is_lost = True
            return None
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None


def _publish(batch: Batch, output: _Written, errors: _Written, totals: _Totals) -> None:
    """Make the files and the end of the batch visible together."""
    outcome = BatchStatus.CANCELLED
    if batch.status == BatchStatus.FINALIZING:
        outcome = BatchStatus.EXPIRED if totals.dropped else BatchStatus.COMPLETED
    # What the shards say is kept with the batch: they go.
    code, message = batch.why_not()
    now = timezone.now()
    with transaction.atomic():
        try:
            batch.move(
                outcome,
                output_file_id=_file(batch, output, now),
                error_file_id=_file(batch, errors, now),
                completed=totals.completed,
                failed=totals.failed,
                input_tokens=totals.usage.input_tokens,
                cached_tokens=totals.usage.cached_tokens,
                output_tokens=totals.usage.output_tokens,
                reasoning_tokens=totals.usage.reasoning_tokens,
                abort_code=code,
                abort_message=message,
            )
            ResultIndex.objects.create(
                batch=batch, entries=ordering.pack(output.entries), expires_at=now + _life(batch)
            )
        except StaleTransition:
            transaction.set_rollback(True)


def _life(batch: Batch) -> timedelta:
    return timedelta(seconds=batch.output_life_seconds) if batch.output_life_seconds else BATCH_FILE_LIFE


def _file(batch: Batch, written: _Written, now: datetime) -> str | None:
    if not written.lines:
        return None
    file = File.objects.create(
        id=ids.file_id(),
        project_id=batch.project_id,
        purpose=Purpose.BATCH_OUTPUT,
        filename=written.name.rpartition("/")[2],
        bytes=written.size,
        lines=written.lines,
        path=written.name,
        created_at=now,
        expires_at=now + _life(batch),
    )
    return file.pk


def purge(batch_id: str) -> None:
    """Delete the results and shards of a batch whose files are written."""
    tables: list[Any] = [Result.objects.filter(batch_id=batch_id), Shard.objects.filter(batch_id=batch_id)]
    for rows in tables:
        while rows.filter(pk__in=rows.values("pk")[:_PURGE_CHUNK]).delete()[0]:
            continue
    Batch.objects.filter(pk=batch_id).update(purged_at=timezone.now())
