"""Lines that are finished before their batch opens: bad ones that it runs without, and answers taken over."""

from collections import defaultdict

from batches import leases
from batches.models import Result, Shard
from batches.outcome import Outcome
from batches.planning import PlannedLine, pack
from batches.states import ShardState
from batches.validation import LineError, read_custom_id

_ROWS = 500  # written at a time
_BYTES = 4 << 20  # held before they are written


class SettledLines:
    """Collects finished lines while a file is validated: results go to the database, places into the plan.

    The results are written outside the transaction that opens the batch. Until then nobody looks at them, and a
    second attempt after a crash begins by deleting them.
    """

    def __init__(self, batch_id: str) -> None:
        self.batch_id = batch_id
        self._places: dict[str, list[PlannedLine]] = defaultdict(list)  # by model, empty for bad lines
        self._count = 0
        self._waiting: list[Outcome] = []
        self._bytes = 0
        Result.objects.filter(batch_id=batch_id).delete()

    def __len__(self) -> int:
        return self._count

    def refuse(self, error: LineError, place: PlannedLine, raw: bytes | None) -> None:
        """Take a bad line."""
        self.add(
            place,
            Outcome(
                self.batch_id,
                place.number,
                read_custom_id(raw),
                error_code=error.code,
                error_message=error.message,
                attempts=0,
            ),
        )

    def add(self, place: PlannedLine, outcome: Outcome, model: str = "") -> None:
        """Take a line, what came of it, and the model that would run it again."""
        self._places[model].append(place)
        self._count += 1
        self._waiting.append(outcome)
        self._bytes += len(outcome.custom_id or "") + len(outcome.body or b"")
        if len(self._waiting) >= _ROWS or self._bytes >= _BYTES:
            self.store()

    def store(self) -> None:
        """Write the results that are not written yet."""
        first = self._count - len(self._waiting) + 1
        leases.write_settled(first, self._waiting)
        self._waiting, self._bytes = [], 0

    def add_to_plan(self) -> None:
        """Add the lines as shards that are done, after those that will run; call in the opening transaction."""
        first = Shard.objects.filter(batch_id=self.batch_id).count()
        for index, (model, places) in enumerate(self._places.items(), first):
            Shard.objects.create(
                batch_id=self.batch_id,
                index=index,
                model=model,
                lines=pack(places),
                count=len(places),
                done=len(places),
                state=ShardState.DONE,
            )
