"""Cut a stream into lines. Pure: no Django, no file system."""

from collections.abc import Iterator
from typing import BinaryIO

BLOCK = 1 << 20  # bytes read at a time

# A line is held in memory whole, by us and by the engine; 32 MiB leaves room for several images in base64.
MAX_LINE_BYTES = 32 << 20


def iter_lines(stream: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (line number from 1, byte offset, bytes without the newline) for each physical line.

    The bytes are None for a line above the maximum, which is skipped without being held in memory.
    """
    number, offset = 0, 0
    rest = b""
    too_long = False
    while block := stream.read(BLOCK):
        parts = (rest + block).split(b"\n")
        rest = parts.pop()
        for part in parts:
            number += 1
            yield number, offset, (None if too_long or len(part) > max_line_bytes else part)
            offset += len(part) + 1
            too_long = False
        if len(rest) > max_line_bytes:
            # Only the length is kept; the offset of the next line needs it.
            too_long = True
            offset += len(rest)
            rest = b""
    if rest or too_long:
        number += 1
        yield number, offset, (None if too_long or len(rest) > max_line_bytes else rest)
