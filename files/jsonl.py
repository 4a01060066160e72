"""Cut a stream into lines. Pure: no Django, no file system."""

import re
from collections.abc import Iterator
from typing import BinaryIO

BLOCK = 1 << 20  # bytes read at a time

# A line is held in memory whole, by us and by the engine; 32 MiB leaves room for several images in base64.
MAX_LINE_BYTES = 32 << 20

_TEXT = re.compile(rb"\S")


def iter_lines(stream: BinaryIO, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (line number from 1, byte offset, bytes without the newline) for physical lines.

    Blank ones are counted and left out, but for the last line of all: 200 MiB of them would take minutes. The bytes are
    None for a line above the maximum, which is skipped without being held in memory.
    """
    number = base = 0  # lines that ended, and bytes, before `data`
    rest = b""
    skipped = 0  # bytes of the present line that were too many to keep
    last: tuple[int, int, bytes] | None = None  # a blank line with nothing after it so far
    while block := stream.read(BLOCK):
        data = rest + block
        end = data.rfind(b"\n") + 1
        at = 0
        while at < end:
            if not skipped:
                text = _TEXT.search(data, at, end)
                start = max(at, data.rfind(b"\n", at, text.start()) + 1) if text else end
                number += data.count(b"\n", at, start)
                at = start
                if text is None:
                    begin = data.rfind(b"\n", 0, end - 1) + 1
                    last = number, base + begin, data[begin : end - 1]
                    break
            stop = data.index(b"\n", at)
            number += 1
            yield number, base + at - skipped, (None if skipped or stop - at > max_line_bytes else data[at:stop])
            at, skipped, last = stop + 1, 0, None
        rest, base = data[end:], base + end
        if skipped or len(rest) > max_line_bytes:
            skipped += len(rest)
            rest, base = b"", base + len(rest)
    if rest or skipped:
        yield number + 1, base - skipped, (None if skipped else rest)
    elif last is not None:
        yield last
