"""Commits that may be called again."""

from batches import leases
from batches.models import Result
from batches.outcome import Outcome


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
        self._tried = False

    def __call__(self) -> None:
        """Write the results, at most once."""
        _, first = self._finished[0]
        # All of a commit is one transaction, so its first row tells whether the lost answer was a yes.
        if self._tried and Result.objects.filter(batch_id=first.batch_id, line=first.line).exists():
            return
        self._tried = True
        self._noted.note(self._provenance, {lease.batch_id for lease, _ in self._finished})
        leases.commit(self._finished)
