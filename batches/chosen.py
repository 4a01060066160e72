"""Lines that were chosen to run again: every other line of the earlier batch keeps what it got."""

import os
from collections.abc import Collection

import msgspec

from batches.carrying import EarlierAnswers, EarlierFilesGone
from batches.models import Batch
from batches.outcome import Outcome
from batches.planning import PlannedLine
from batches.settled import SettledLines
from batches.validation import RequestLine
from files import storage
from files.jsonl import iter_lines
from files.models import File


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Failed(msgspec.Struct):
    custom_id: str | None
    response: _Response | None = None
    error: _Error | None = None


_decoder = msgspec.json.Decoder(_Failed)


class ChosenLines:
    """Takes over answers and errors of an ended batch, but for the chosen lines. Raises EarlierFilesGone."""

    def __init__(self, chosen: Collection[str], answers: EarlierAnswers, earlier: Batch, settled: SettledLines) -> None:
        self.missing = set(chosen)
        self.errors = 0  # taken over
        self._chosen = frozenset(chosen)
        self._answers = answers
        self._settled = settled
        self._places: dict[str, tuple[int, int]] = {}
        self._descriptor = -1
        if earlier.error_file_id is not None:
            self._open(earlier)

    def __enter__(self) -> "ChosenLines":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _open(self, earlier: Batch) -> None:
        path = File.objects.filter(pk=earlier.error_file_id).values_list("path", flat=True).first()
        try:
            with storage.opened(path or "") as stream:
                for _, offset, raw in iter_lines(stream):
                    if raw and (name := _decoder.decode(raw).custom_id) is not None:
                        self._places[name] = (offset, len(raw))
            self._descriptor = storage.local_descriptor(path or "")
        except FileNotFoundError:
            raise EarlierFilesGone(earlier.pk) from None

    def take(self, place: PlannedLine, line: RequestLine, model: str) -> bool:
        """Settle a line that was not chosen and has an answer or an error; return False for one that has to run."""
        if line.custom_id in self._chosen:
            self.missing.discard(line.custom_id)
            return False
        return self._answers.take(place, line, model) or self._take_error(place, line.custom_id, model)

    def _take_error(self, place: PlannedLine, custom_id: str, model: str) -> bool:
        if custom_id not in self._places:
            return False
        offset, length = self._places[custom_id]
        found = _decoder.decode(os.pread(self._descriptor, length, offset))
        outcome = Outcome(self._settled.batch_id, place.number, custom_id)
        if found.response is not None:
            outcome = outcome._replace(
                status_code=found.response.status_code,
                request_id=found.response.request_id,
                body=bytes(found.response.body),
            )
        elif found.error is not None:
            outcome = outcome._replace(error_code=found.error.code, error_message=found.error.message)
        self._settled.add(place, outcome, model)
        self.errors += 1
        return True
