"""Batches whose input file could not be read, left alone for longer and longer. Pure: no Django."""

import logging
import time
from collections.abc import Sequence

from batches.demand import Waiting

logger = logging.getLogger(__name__)

FIRST_SECONDS = 1.0  # a fault of a storage is mostly over at once
MOST_SECONDS = 60.0  # soon enough after somebody has mended it


class LeftAlone:
    """What one worker does not claim for now; other workers may be able to read it."""

    def __init__(self) -> None:
        self._until: dict[str, tuple[float, float]] = {}  # on the steady clock, and how long the wait was

    def add(self, batch_id: str, error: OSError) -> bool:
        """Leave a batch alone, for twice as long as the last time unless that was long ago.

        Returns whether there is hope: a storage that is away comes back, and a wrong mode is mended by somebody; the
        batch's window says how long that may take. A file that is not there any more was deleted.
        """
        now = time.monotonic()
        self._until = {key: wait for key, wait in self._until.items() if now < wait[0] + MOST_SECONDS}
        until, seconds = self._until.get(batch_id, (now, 0.0))
        if until <= now:
            seconds = min(max(2 * seconds, FIRST_SECONDS), MOST_SECONDS)
            self._until[batch_id] = now + seconds, seconds
            extra = {"action": "input_unreadable", "batch": batch_id, "seconds": seconds}
            logger.error("input file can't be read: %s", error.strerror or error, extra=extra)
        return not isinstance(error, FileNotFoundError)

    def without(self, waiting: Sequence[Waiting]) -> Sequence[Waiting]:
        """Return the work that may be claimed."""
        if not self._until:
            return waiting
        now = time.monotonic()
        return [work for work in waiting if self._until.get(work.batch_id, (0.0, 0.0))[0] <= now]
