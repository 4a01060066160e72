"""Read a batch's results by position, while it runs and after it ended: no line is skipped and none comes twice.

A position is given out with the batch's row locked (see Result), so the lines after a position that can be seen now
come before all that can be seen later. When the batch ends, its files and their index appear in one transaction, and
only then are rows deleted: rows that were read before the batch was seen running are complete.
"""

from contextlib import ExitStack
from typing import BinaryIO, NamedTuple

from django.db.models import QuerySet

from batches import ordering
from batches.answers import line_of
from batches.models import Batch, Result, ResultIndex
from batches.states import TERMINAL, BatchStatus
from files import storage
from files.models import File

CHUNK_LINES = 200  # read at a time
CHUNK_BYTES = 4 << 20  # of lines held at a time, and the one that went over


class ResultsDeleted(Exception):
    """The files that hold the lines are gone."""


class Numbered(NamedTuple):
    """One line of a result file, and its place in the order in which lines were finished."""

    position: int
    line: bytes


class Seen(NamedTuple):
    """How far a batch was when somebody looked."""

    status: str
    committed: int

    @property
    def is_final(self) -> bool:
        """Whether no line will follow."""
        return self.status in TERMINAL


def look(batch_ids: list[str]) -> dict[str, Seen]:
    """Return how far batches are, in one query."""
    rows = Batch.objects.filter(pk__in=batch_ids).values_list("pk", "status", "committed")
    return {pk: Seen(status, committed) for pk, status, committed in rows}


class Reader:
    """Reads one batch's results; for one thread at a time."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self._index: bytes | memoryview | None = None

    def read(self, after: int, limit: int = CHUNK_LINES) -> tuple[list[Numbered], bool]:
        """Return the next lines after a position, and whether the batch had ended when they were read.

        At least one line comes back when there is one, and no more than about CHUNK_BYTES. Raises ResultsDeleted.
        """
        if self._index is None and not self._is_validating():
            found, size = [], 0
            for result in self._rows(after)[: min(limit, CHUNK_LINES)].iterator(chunk_size=50):
                found.append(Numbered(result.position, line_of(self.batch, result.position, result)))
                size += len(found[-1].line)
                if size > CHUNK_BYTES:
                    break
            if not self._has_ended():
                return found, False
        elif self._index is None:
            return [], False
        return self._from_files(after, min(limit, CHUNK_LINES)), True

    def last_position(self, after: int, limit: int) -> int:
        """Return the position that a page of so many lines ends with, `after` itself when there are none.

        Raises ResultsDeleted, before an answer begins that would have to break off.
        """
        if self._is_validating():
            return after
        positions = list(self._rows(after).values_list("position", flat=True)[:limit])
        if self._has_ended():
            positions = [entry.position for entry in self._entries(after, limit)]
            for file_id in filter(None, (self.batch.output_file_id, self.batch.error_file_id)):
                self._opened(file_id).close()
        return positions[-1] if positions else after

    def _is_validating(self) -> bool:
        """Return whether the batch is not open yet: bad lines may be written more than once until it is."""
        if self.batch.status == BatchStatus.VALIDATING:
            self.batch.refresh_from_db(fields=["status"])
        return self.batch.status == BatchStatus.VALIDATING

    def _has_ended(self) -> bool:
        return look([self.batch.pk])[self.batch.pk].is_final

    def _rows(self, after: int) -> QuerySet[Result]:
        return Result.objects.filter(batch_id=self.batch.pk, position__gt=after).order_by("position")

    def _entries(self, after: int, limit: int) -> list[ordering.Entry]:
        if self._index is None:
            self.batch.refresh_from_db()
            rows = ResultIndex.objects.filter(pk=self.batch.pk).values_list("entries", flat=True)
            index = rows.first()
            if index is None and (self.batch.output_file_id or self.batch.error_file_id):
                raise ResultsDeleted(self.batch.pk)
            self._index = index or b""
        return ordering.after(self._index, after, limit)

    def _from_files(self, after: int, limit: int) -> list[Numbered]:
        found, size = [], 0
        with ExitStack() as stack:
            files: dict[bool, BinaryIO] = {}
            for entry in self._entries(after, limit):
                if entry.in_errors not in files:
                    file_id = self.batch.error_file_id if entry.in_errors else self.batch.output_file_id
                    files[entry.in_errors] = stack.enter_context(self._opened(file_id))
                files[entry.in_errors].seek(entry.offset)
                found.append(Numbered(entry.position, files[entry.in_errors].readline()))
                size += len(found[-1].line)
                if size > CHUNK_BYTES:
                    break
        return found

    def _opened(self, file_id: str | None) -> BinaryIO:
        file = File.objects.visible_to(self.batch.project).filter(pk=file_id).first()
        if file is None:
            raise ResultsDeleted(self.batch.pk)
        try:
            return storage.opened(file.path)
        except FileNotFoundError:
            raise ResultsDeleted(self.batch.pk) from None
