"""From finished lines to rows: in groups, and in commits that may be called again."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from batches import leases
from batches.outcome import Outcome
from workers.lines import Held

COMMIT_LINES = 256  # results in one transaction
COMMIT_SECONDS = 0.25  # how long a result waits for company; a crash repeats at most these and the lines in flight


class Noted:
    """Keeps with each batch what engine answers it: before its first results, and once for each engine."""

    def __init__(self) -> None:
        self._provenance = ""  # of the engine that answers, or did last
        self._batches: set[str] = set()

    def note(self, provenance: str, batch_ids: set[str]) -> None:
        """Write what is not written yet; without an engine its predecessor's answers are meant."""
        if provenance and provenance != self._provenance:
            self._provenance = provenance
            self._batches.clear()
        new = batch_ids - self._batches if self._provenance else set()
        if new:
            leases.note_provenance((batch_id, self._provenance) for batch_id in sorted(new))
            self._batches |= new


class Commit:
    """One commit, which may be called again when the database's answer was lost."""

    def __init__(self, finished: list[tuple[leases.Lease, Outcome]], noted: Noted, provenance: str) -> None:
        self._finished = finished
        self._noted = noted
        self._provenance = provenance
        self._attempt = leases.Attempt()

    def __call__(self) -> None:
        """Write the results, at most once."""
        # Its rows would not tell: somebody may have had a failed line run again since, or taken the shard over.
        if self._attempt.succeeded():
            return
        self._attempt = leases.Attempt()
        self._noted.note(self._provenance, {lease.batch_id for lease, _ in self._finished})
        leases.commit(self._finished, self._attempt)


class Outbox:
    """Finished lines that are not committed yet."""

    def __init__(self, database: Callable[..., Awaitable[Any]], provenance: Callable[[], str]) -> None:
        self._db = database
        self._provenance = provenance  # of the engine that answers, empty without one
        self._finished: list[tuple[Held, Outcome]] = []
        self._wanted = asyncio.Event()
        self._due = asyncio.Event()
        self._noted = Noted()

    def __len__(self) -> int:
        return len(self._finished)

    def add(self, held: Held, outcomes: Iterable[Outcome], *, is_last: bool) -> None:
        """Take what came of a line; after the last one that is at hand there is no company to wait for."""
        self._finished.extend((held, outcome) for outcome in outcomes)
        self._wanted.set()
        if is_last or len(self._finished) >= COMMIT_LINES:
            self._due.set()

    async def wait(self) -> None:
        """Return when a commit is due."""
        await self._wanted.wait()
        try:
            async with asyncio.timeout(COMMIT_SECONDS):
                await self._due.wait()
        except TimeoutError:
            pass
        self._wanted.clear()
        self._due.clear()

    async def commit(self) -> set[Held]:
        """Write what is finished; return the shards of which all has been written."""
        finished, self._finished = self._finished, []
        if not finished:
            return set()
        answers = [(held.lease, outcome) for held, outcome in finished]
        # Whoever stops the runner cancels this, also while the commit still waits for the database's thread.
        await asyncio.shield(self._db(Commit(answers, self._noted, self._provenance())))
        for held, _ in finished:
            held.uncommitted -= 1
        return {held for held, _ in finished if held.uncommitted == 0}
