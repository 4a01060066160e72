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
    number = offset = 0
    rest = b""
    skipped = 0  # bytes of the present line that were too many to keep
    while block := stream.read(BLOCK):
        parts = (rest + block).split(b"\n")
        rest = parts.pop()
        for part in parts:
            number += 1
            yield number, offset, (None if skipped or len(part) > max_line_bytes else part)
            offset += skipped + len(part) + 1
            skipped = 0
        if skipped or len(rest) > max_line_bytes:
            skipped += len(rest)
            rest = b""
    if rest or skipped:
        yield number + 1, offset, (None if skipped else rest)
