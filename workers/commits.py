"""Commits that may be called again."""

from batches import leases
from batches.models import Result
from batches.outcome import Outcome


class Commit:
    """One commit, which may be called again when the database's answer was lost."""

    def __init__(self, finished: list[tuple[leases.Lease, Outcome]]) -> None:
        self._finished = finished
        self._tried = False

    def __call__(self) -> None:
        """Write the results, at most once."""
        _, first = self._finished[0]
        # All of a commit is one transaction, so its first row tells whether the lost answer was a yes.
        if self._tried and Result.objects.filter(batch_id=first.batch_id, line=first.line).exists():
            return
        self._tried = True
        leases.commit(self._finished)
