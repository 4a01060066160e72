"""Where each line of an ended batch lies in its three files, and what a list of lines shows of it. Pure: no Django.

One record of a fixed size a line, in the order of the input: page 900 is one seek away, and what a filter asks for is
found without reading the answers. It is written while the batch is finalized and goes with the batch's files.
"""

import re
from collections import Counter
from collections.abc import Iterator
from struct import Struct
from typing import BinaryIO, NamedTuple

ID_BYTES = 64  # of a custom_id; a longer one is cut here and whole in the file
_REASON_BYTES = 12
_RECORD = Struct(f"<IBQIQIHHIIII24s{_REASON_BYTES}s{ID_BYTES}s")
SIZE = _RECORD.size
_FILE_AT = 4  # the byte of a record that names the file
_REASON_AT = SIZE - ID_BYTES - _REASON_BYTES

OUTPUT, ERROR = 0, 1

_REASON = re.compile(rb'"finish_reason":\s*"(\w{1,12})"')


class Entry(NamedTuple):
    """One line."""

    line: int
    file: int
    offset: int
    length: int
    input_offset: int
    input_length: int
    status_code: int = 0  # 0: no answer
    attempts: int = 0
    milliseconds: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    code: str = ""
    finish_reason: str = ""
    custom_id: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the line is in the output file."""
        return self.file == OUTPUT


def name_for(batch_id: str) -> str:
    """Return the index's name in the storage."""
    return f"batches/{batch_id}_lines.index"


def batch_of(path: str) -> str | None:
    """Return the id of the batch whose output or error file this is, None for other files."""
    match = re.fullmatch(r"batches/(.+)_(?:output|error)\.jsonl", path)
    return match[1] if match else None


def finish_reason(body: bytes) -> str:
    """Return why an answer ended, as its first choice says; empty where there is none."""
    match = _REASON.search(body)
    return match[1].decode() if match else ""


def _cut(text: str, size: int) -> bytes:
    return text.encode("utf-8", "replace")[:size]


def pack(entry: Entry) -> bytes:
    """Return one record."""
    *numbers, code, reason, custom_id = entry
    return _RECORD.pack(*numbers, _cut(code, 24), _cut(reason, _REASON_BYTES), _cut(custom_id, ID_BYTES))


def _unpack(fields: tuple[int | bytes, ...]) -> Entry:
    texts = [bytes(field).rstrip(b"\0").decode("utf-8", "ignore") for field in fields[12:]]
    return Entry(*fields[:12], *texts)  # type: ignore[arg-type]


class LineIndex:
    """Reads an index that is open."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._stream.seek(0, 2)
        self.count = self._stream.tell() // SIZE

    def at(self, numbers: list[int]) -> list[Entry]:
        """Return the records of these places, counted from 0."""
        found = []
        for number in numbers:
            self._stream.seek(number * SIZE)
            found.append(_unpack(_RECORD.unpack(self._stream.read(SIZE))))
        return found

    def page(self, start: int, size: int) -> list[Entry]:
        """Return neighbouring records."""
        self._stream.seek(start * SIZE)
        data = self._stream.read(max(size, 0) * SIZE)
        return [_unpack(fields) for fields in _RECORD.iter_unpack(data[: len(data) // SIZE * SIZE])]

    def _data(self) -> bytes:
        self._stream.seek(0)
        return self._stream.read(self.count * SIZE)

    def in_file(self, file: int) -> list[int]:
        """Return the places of the lines in one of the two files."""
        marks = self._data()[_FILE_AT::SIZE]
        return [place for place, mark in enumerate(marks) if mark == file]

    def named(self, text: str) -> list[int]:
        """Return the places of lines whose custom_id contains a text."""
        data, wanted, at = self._data(), text.encode(), -1
        found: list[int] = []
        while (at := data.find(wanted, at + 1)) >= 0:
            place, within = divmod(at, SIZE)
            if within >= SIZE - ID_BYTES and within + len(wanted) <= SIZE and (not found or found[-1] != place):
                found.append(place)
        return found

    def reasons(self) -> dict[str, int]:
        """Return how many lines ended for each reason that answers gave, the most frequent first."""
        data = self._data()
        found = Counter(data[at : at + _REASON_BYTES] for at in range(_REASON_AT, len(data), SIZE))
        return {key.rstrip(b"\0").decode(): n for key, n in found.most_common() if key.strip(b"\0")}

    def entries(self) -> Iterator[Entry]:
        """Yield all records."""
        return map(_unpack, _RECORD.iter_unpack(self._data()))
