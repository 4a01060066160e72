"""From the lines of a file to shards. Pure: no Django."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import NamedTuple

# Small enough that a crash repeats little and that two workers share one batch; large enough that a claim, two
# queries, is little beside the work in it.
SHARD_LINES = 256

_PACKED = Struct("<IQI")  # line number, byte offset, byte length


class PlannedLine(NamedTuple):
    """Where one request lies in its input file."""

    number: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class PlannedShard:
    """Lines that run together."""

    model: str
    count: int
    packed: bytes


@dataclass(slots=True)
class Plan:
    """The lines of a valid file, collected while it is validated: 20 bytes a line."""

    numbers: "array[int]" = field(default_factory=lambda: array("I"))
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    lengths: "array[int]" = field(default_factory=lambda: array("I"))

    def add(self, number: int, offset: int, length: int) -> None:
        """Note one line."""
        self.numbers.append(number)
        self.offsets.append(offset)
        self.lengths.append(length)

    def __len__(self) -> int:
        return len(self.numbers)

    def shards(self, model: str, size: int = SHARD_LINES) -> Iterator[PlannedShard]:
        """Yield the lines in the order they should run, cut into shards."""
        order = range(len(self.numbers))
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            packed = b"".join(_PACKED.pack(self.numbers[i], self.offsets[i], self.lengths[i]) for i in chosen)
            yield PlannedShard(model=model, count=len(chosen), packed=packed)


def unpack(packed: bytes | memoryview) -> Iterator[PlannedLine]:
    """Yield the lines of a shard."""
    return map(PlannedLine._make, _PACKED.iter_unpack(packed))


def in_file_order(shards: Iterable[bytes | memoryview]) -> list[PlannedLine]:
    """Return all lines of all shards by line number."""
    return sorted(line for packed in shards for line in unpack(packed))
