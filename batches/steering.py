"""What a person may tell a batch to do, from the API, the admin or the console."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import transaction
from django.utils import timezone

from batches import doorbell
from batches.models import Batch, BatchEvent, StaleTransition
from batches.states import STEERABLE, BatchStatus, EventKind
from vbatch_site import audit
from vbatch_site.models import ApiKey


def name_of(by: ApiKey | str | None) -> str:
    """Return how the journal names who asks: a key's beginning, a person's name."""
    if isinstance(by, ApiKey):
        return f"key {by.prefix}"
    return by or "a request without a key"


def cancel(batch: Batch, by: str) -> None:
    """Start to cancel a batch; raise StaleTransition when it is past that."""
    with transaction.atomic():
        batch.move(BatchStatus.CANCELLING, reason=f"asked for by {by}")
        audit.note_change(batch.pk)
        # Finalizing waits for workers that hold lines of it; they let go within a second and ring again.
        doorbell.ring_finalize(batch.pk)


def pause(batch: Batch, by: str) -> None:
    """Start no more lines of a batch until it is resumed; raise StaleTransition when it is ending.

    Workers see it within a second, and finish what they have in flight if that takes no longer than a few. The
    completion window goes on.
    """
    with _steered(batch) as locked:
        if locked.paused_at is None:
            _write(locked, EventKind.PAUSE, f"asked for by {by}", paused_at=timezone.now())


def resume(batch: Batch, by: str) -> None:
    """Let a paused batch go on; raise StaleTransition when it is ending."""
    with _steered(batch) as locked:
        if locked.paused_at is not None:
            _write(locked, EventKind.RESUME, f"asked for by {by}", paused_at=None)
            doorbell.ring_gpu()


def prioritize(batch: Batch, priority: int, by: str) -> None:
    """Give a batch another priority; raise StaleTransition when it is ending."""
    with _steered(batch) as locked:
        if locked.priority != priority:
            _write(locked, EventKind.PRIORITY, f"{priority}, asked for by {by}", priority=priority)


@contextmanager
def _steered(batch: Batch) -> Iterator[Batch]:
    """Yield the batch's row, locked, and bring the caller's object up to date; raise StaleTransition."""
    with transaction.atomic():
        locked = Batch.objects.select_for_update(no_key=True).get(pk=batch.pk)
        if locked.status not in STEERABLE:
            raise StaleTransition(f"{batch.pk} is {locked.status}")
        yield locked
        audit.note_change(batch.pk)
    batch.refresh_from_db()


def _write(batch: Batch, kind: EventKind, reason: str, **fields: Any) -> None:
    Batch.objects.filter(pk=batch.pk).update(**fields)
    now = timezone.now()
    BatchEvent.objects.create(batch=batch, at=now, kind=kind, status=batch.status, reason=reason[:200])
