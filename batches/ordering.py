"""Where the lines of an ended batch lie in its files, in the order of their positions. Pure: no Django.

A reader of results counts by position from the first line to the last, whether the lines are still rows or already in
files. The files are in the order of the input; this index is how the one order is found in the other.
"""

from bisect import bisect_right
from collections.abc import Iterable
from struct import Struct
from typing import NamedTuple

_PACKED = Struct("<IQ")  # position, byte offset; the highest bit of the offset says that it is in the error file
_IN_ERRORS = 1 << 63


class Entry(NamedTuple):
    """One line of a result file."""

    position: int
    in_errors: bool
    offset: int


def pack(entries: Iterable[Entry]) -> bytes:
    """Return the index of these lines."""
    return b"".join(
        _PACKED.pack(position, offset | (_IN_ERRORS if in_errors else 0))
        for position, in_errors, offset in sorted(entries)
    )


def after(packed: bytes | memoryview, position: int, limit: int) -> list[Entry]:
    """Return the next lines after a position; the index is searched in place."""
    view = memoryview(packed)
    count = len(view) // _PACKED.size
    start = bisect_right(range(count), position, key=lambda at: _PACKED.unpack_from(view, at * _PACKED.size)[0])
    stop = min(start + limit, count)
    return [
        Entry(found, bool(offset & _IN_ERRORS), offset & ~_IN_ERRORS)
        for found, offset in _PACKED.iter_unpack(view[start * _PACKED.size : stop * _PACKED.size])
    ]
