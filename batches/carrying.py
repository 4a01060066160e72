"""Answers that a batch takes over from an earlier one: those to lines that have not changed.

A line is the same when its custom_id, endpoint, model and body are; the order of a body's keys and white space do not
count. Of the earlier batch's files only places and digests are held, a few hundred bytes a line.
"""

import os
from contextlib import suppress
from hashlib import blake2b

import msgspec

from batches.bodies import plain
from batches.models import Batch
from batches.outcome import Outcome
from batches.planning import PlannedLine
from batches.settled import SettledLines
from batches.states import BatchStatus
from batches.validation import RequestLine, parse_line
from files import storage
from files.jsonl import iter_lines
from files.models import File
from vbatch_site.models import Project

FILES_GONE = "batch_files_gone"


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Answered(msgspec.Struct):
    custom_id: str
    response: _Response


_decoder = msgspec.json.Decoder(_Answered)


def _digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


def fingerprint(line: RequestLine, model: str) -> bytes:
    """Return a digest that is equal for lines that ask the same of the same model."""
    return blake2b(line.url.encode() + b"\n" + plain(line.body, model=model), digest_size=16).digest()


class EarlierFilesGone(Exception):
    """A file of the batch to continue from was deleted or has expired."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"Can't continue from '{batch_id}': its input or output file was deleted or has expired.")


def find_earlier(project: Project, batch_id: str) -> Batch | None:
    """Return the project's batch whose answers are meant: of a batch that failed, the one that it continued from."""
    batches = Batch.objects.visible_to(project)
    batch = batches.filter(pk=batch_id).first()
    while batch is not None and batch.status == BatchStatus.FAILED and batch.continue_from:
        batch = batches.filter(pk=batch.continue_from).first()
    return batch


def check_files(earlier: Batch) -> None:
    """Raise EarlierFilesGone unless the files of an ended batch can still be seen."""
    if earlier.output_file_id is not None:
        ids = {earlier.input_file_id, earlier.output_file_id}
        if File.objects.visible_to(earlier.project).filter(pk__in=ids).count() < len(ids):
            raise EarlierFilesGone(earlier.pk)


class EarlierAnswers:
    """The successful lines of an ended batch. Raises EarlierFilesGone."""

    def __init__(self, earlier: Batch, settled: SettledLines) -> None:
        self._settled = settled
        self._places: dict[bytes, tuple[int, int]] = {}
        self._fingerprints: dict[bytes, bytes] = {}
        self._descriptor = -1
        if earlier.output_file_id is None:
            return
        ids = [earlier.input_file_id, earlier.output_file_id]
        # Deleted ones too: the sweep leaves their bytes to a batch that is being validated.
        paths = dict(File.objects.filter(pk__in=ids).values_list("pk", "path"))
        try:
            self._read_output(paths[earlier.output_file_id])
            self._read_input(paths[earlier.input_file_id], earlier.default_model)
            self._descriptor = storage.local_descriptor(paths[earlier.output_file_id])
        except (KeyError, FileNotFoundError):
            raise EarlierFilesGone(earlier.pk) from None

    def __enter__(self) -> "EarlierAnswers":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def _read_output(self, path: str) -> None:
        with storage.opened(path) as stream:
            for _, offset, raw in iter_lines(stream):
                if raw:
                    self._places[_digest(_decoder.decode(raw).custom_id)] = (offset, len(raw))

    def _read_input(self, path: str, default_model: str) -> None:
        repeated = set()
        with storage.opened(path) as stream:
            for _, _, raw in iter_lines(stream):
                # The earlier batch may have run without its bad lines.
                with suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                    line = parse_line(raw or b"")
                    key = _digest(line.custom_id)
                    if key not in self._places:
                        continue
                    asked = fingerprint(line, _model_of(line) or default_model)
                    if key in self._fingerprints:
                        repeated.add(key)
                    self._fingerprints[key] = asked
        # Which of two lines was answered can't be told from the output.
        for key in repeated:
            del self._fingerprints[key]

    def take(self, place: PlannedLine, line: RequestLine, model: str) -> bool:
        """Settle a line that was answered before; return False for one that has to run."""
        key = _digest(line.custom_id)
        if key not in self._fingerprints or self._fingerprints[key] != fingerprint(line, model):
            return False
        offset, length = self._places[key]
        found = _decoder.decode(os.pread(self._descriptor, length, offset)).response
        outcome = Outcome(
            self._settled.batch_id,
            place.number,
            line.custom_id,
            status_code=found.status_code,
            request_id=found.request_id,
            body=bytes(found.body),
            attempts=0,
        )
        self._settled.add(place, outcome, model)
        return True


class _Named(msgspec.Struct):
    model: str | None = None


def _model_of(line: RequestLine) -> str:
    return msgspec.json.decode(line.body, type=_Named).model or ""
