"""From the lines of a file to shards. Pure: no Django.

The order is a walk through the tree of shared prefixes: an engine that keeps the keys and values of what it has read
then reads a document, or a header of examples, once for all lines that begin with it. Lines with much to generate go
first, so that none is left alone at the end. What a line gets does not depend on its place.
"""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from statistics import median
from struct import Struct
from typing import NamedTuple
from zlib import crc32

# Small enough that a crash repeats little and that two workers share one batch; large enough that a claim, two
# queries, is little beside the work in it.
SHARD_LINES = 256
# A shard has at most one part in so many of the lines that are left, so that workers who share a batch end together.
TAIL_PARTS = 2
# But not fewer than these: a fast engine would wait for claims, and so few at the end of one worker are soon done.
LEAST_SHARD_LINES = 64
# Repeats of one request stay together, because only lines in one worker's hands can share an answer.
LARGEST_SHARD_LINES = 4096

# Bytes of prompt in one step of a key. About 16 tokens, which is vLLM's block of cached keys and values, and coarser
# further on, where prompts that were equal so far seldom part.
FINE_STEP, FINE_BYTES = 64, 4 << 10
COARSE_STEP, COARSE_BYTES = 1 << 10, 128 << 10

# A line is long when it may generate this many times what the median line may.
LONG = 4

_PACKED = Struct("<IQII")  # line number, byte offset, byte length, number of the line it repeats or 0


class PlannedLine(NamedTuple):
    """Where one request lies in its input file, and which earlier one it repeats (0: none)."""

    number: int
    offset: int
    length: int
    repeats: int = 0


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """Lines that run together."""

    model: str
    count: int
    packed: bytes


def prefix_key(prompt: bytes) -> bytes:
    """Return a sort key that puts prompts with a common beginning side by side.

    It is the chain of checksums of ever longer prefixes: as far as two prompts are equal, so are their keys. A
    collision costs a few tokens read twice.
    """
    view = memoryview(prompt)[:COARSE_BYTES]
    sums, checksum = array("I"), 0
    for start in range(0, min(len(view), FINE_BYTES), FINE_STEP):
        checksum = crc32(view[start : start + FINE_STEP], checksum)
        sums.append(checksum)
    for start in range(FINE_BYTES, len(view), COARSE_STEP):
        checksum = crc32(view[start : start + COARSE_STEP], checksum)
        sums.append(checksum)
    return sums.tobytes()


@dataclass(slots=True)
class Plan:
    """The lines of a valid file, collected while it is validated: a few hundred bytes a line at most."""

    numbers: "array[int]" = field(default_factory=lambda: array("I"))
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    lengths: "array[int]" = field(default_factory=lambda: array("I"))
    keys: list[bytes] = field(default_factory=list)
    generates: "array[int]" = field(default_factory=lambda: array("I"))
    sizes: "array[int]" = field(default_factory=lambda: array("I"))  # bytes of prompt
    _first: dict[bytes, int] = field(default_factory=dict)
    _repeats: dict[int, list[int]] = field(default_factory=dict)

    def add(
        self, place: PlannedLine, prompt: bytes = b"", generates: int = 0, same_answer: bytes | None = None
    ) -> None:
        """Note one line: its prompt, how many tokens it may generate, and a digest that equals for equal answers."""
        index = len(self.numbers)
        self.numbers.append(place.number)
        self.offsets.append(place.offset)
        self.lengths.append(place.length)
        self.keys.append(prefix_key(prompt))
        self.generates.append(min(generates, 1 << 30))
        self.sizes.append(len(prompt))
        if same_answer is not None:
            first = self._first.setdefault(same_answer, index)
            if first != index:
                self._repeats.setdefault(first, []).append(index)

    def __len__(self) -> int:
        return len(self.numbers)

    def order(self) -> list[int]:
        """Return the indexes of the lines that are computed, as they should run."""
        repeats = {index for group in self._repeats.values() for index in group}
        long = LONG * median(self.generates) if self.generates else 0
        chosen = (index for index in range(len(self)) if index not in repeats)
        return sorted(chosen, key=lambda i: (self.generates[i] <= long, self.keys[i]))

    @property
    def repeated(self) -> int:
        """How many lines share the answer of an earlier one."""
        return sum(map(len, self._repeats.values()))

    def shared(self) -> Iterator[tuple[int, float]]:
        """Yield each line that is computed and the part of its prompt, 0 to 1, that the line before it begins with."""
        before = b""
        for index in self.order():
            key, size = self.keys[index], self.sizes[index]
            yield index, min(_equal_bytes(before, key), size) / size if size else 0.0
            before = key

    def shards(self, model: str, size: int = SHARD_LINES) -> Iterator[PlannedShard]:
        """Yield the lines in the order they should run, cut into shards; a repeat comes right after its first."""
        packed: list[bytes] = []
        left = len(self)
        for index in self.order():
            for line in (index, *self._repeats.get(index, ())):
                packed.append(self._pack(line, index))
                if len(packed) >= LARGEST_SHARD_LINES:
                    left -= len(packed)
                    yield PlannedShard(model, len(packed), b"".join(packed))
                    packed = []
            if len(packed) >= min(size, max(LEAST_SHARD_LINES, left // TAIL_PARTS)):
                left -= len(packed)
                yield PlannedShard(model, len(packed), b"".join(packed))
                packed = []
        if packed:
            yield PlannedShard(model, len(packed), b"".join(packed))

    def _pack(self, index: int, first: int) -> bytes:
        repeats = self.numbers[first] if first != index else 0
        return _PACKED.pack(self.numbers[index], self.offsets[index], self.lengths[index], repeats)


def _equal_bytes(first: bytes, second: bytes) -> int:
    """Return how many bytes two prompts have in common at their beginning, by their keys."""
    least = min(len(first), len(second)) // 4
    # A checksum stands for all before it, so what is equal ends in one place.
    steps = bisect_left(range(least), True, key=lambda i: first[4 * i : 4 * i + 4] != second[4 * i : 4 * i + 4])
    fine = FINE_BYTES // FINE_STEP
    return steps * FINE_STEP if steps <= fine else FINE_BYTES + (steps - fine) * COARSE_STEP


def pack(lines: Iterable[PlannedLine]) -> bytes:
    """Return lines as a shard keeps them."""
    return b"".join(_PACKED.pack(*line) for line in lines)


def unpack(packed: bytes | memoryview) -> Iterator[PlannedLine]:
    """Yield the lines of a shard."""
    return map(PlannedLine._make, _PACKED.iter_unpack(packed))


def in_file_order(shards: Iterable[bytes | memoryview]) -> list[PlannedLine]:
    """Return all lines of all shards by line number."""
    return sorted(line for packed in shards for line in unpack(packed))


def by_answer(lines: Iterable[PlannedLine]) -> list[list[PlannedLine]]:
    """Return lines in groups that share one answer, the one to compute first in each."""
    groups: dict[int, list[PlannedLine]] = {}
    for line in lines:
        groups.setdefault(line.repeats or line.number, []).append(line)
    return list(groups.values())
