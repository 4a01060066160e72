"""Who runs next. Pure: rows and a clock in, a choice out."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from batches.demand import Waiting

# Work for the loaded model goes first until another model's has waited this long.
MAX_WAIT = timedelta(minutes=5)


def choose(waiting: Sequence[Waiting], loaded: str | None, now: datetime) -> Waiting | None:
    """Return the batch to take the next shard from: oldest first, the loaded model's before others'."""
    if not waiting:
        return None
    oldest_first = sorted(waiting, key=lambda batch: (batch.created_at, batch.batch_id))
    if now - oldest_first[0].created_at > MAX_WAIT:
        return oldest_first[0]
    return next((batch for batch in oldest_first if batch.model == loaded), oldest_first[0])
