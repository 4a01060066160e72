"""Lines in a runner's hands that are not started yet, and which of them is next.

Shares of the engine are shares of the lines in flight: of the projects with the best rank, the one with the fewest in
flight for its weight goes first. Within a project, shards go in the order in which they were claimed.
"""

from collections import Counter, deque
from collections.abc import Iterable

from workers.lines import Held, Line


class Backlog:
    """Lines by rank and project."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, int], deque[Line]] = {}
        self._in_flight: Counter[int] = Counter()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, lines: Iterable[Line]) -> None:
        """Put lines behind those of the same rank and project."""
        for line in lines:
            self._groups.setdefault((line.held.rank, line.held.lease.project_id), deque()).append(line)
            self._count += 1

    def next(self) -> Line:
        """Take the line to start; raise IndexError when there is none. It counts as in flight until `ended`."""
        if not self._groups:
            raise IndexError("no lines")
        key = self._next_group() if len(self._groups) > 1 else next(iter(self._groups))
        group = self._groups[key]
        line = group.popleft()
        if not group:
            del self._groups[key]
        self._count -= 1
        self._in_flight[key[1]] += 1
        return line

    def _next_group(self) -> tuple[int, int]:
        def order(key: tuple[int, int]) -> tuple[int, float]:
            rank, project_id = key
            return rank, self._in_flight[project_id] / self._groups[key][0].held.lease.weight

        return min(self._groups, key=order)

    def ended(self, line: Line) -> None:
        """Count a started line as no longer in flight."""
        project_id = line.held.lease.project_id
        self._in_flight[project_id] -= 1
        if self._in_flight[project_id] <= 0:
            del self._in_flight[project_id]

    def lacks(self, rank: int, project_id: int) -> bool:
        """Return whether a shard of this rank and project would be served before what is here, or beside it."""
        if not self._groups:
            return True
        return rank < min(rank for rank, _ in self._groups) or all(project != project_id for _, project in self._groups)

    def remove(self, held: Held) -> None:
        """Take out all lines of a shard."""
        for key in list(self._groups):
            left = deque(line for line in self._groups[key] if line.held is not held)
            self._count -= len(self._groups[key]) - len(left)
            if left:
                self._groups[key] = left
            else:
                del self._groups[key]

    def clear(self) -> None:
        """Take out everything."""
        self._groups.clear()
        self._count = 0
