"""Repair by the clock: what a crash, a lost task or a passed deadline left behind goes on from here."""

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q
from django_q.models import Schedule

from batches import doorbell, line_index
from batches.finalize import purge
from batches.locks import REMOVING, batch_lock
from batches.models import Batch, ResultIndex, StaleTransition
from batches.states import TERMINAL, WAITS_FOR_TASK, BatchStatus
from batches.webhooks import deliveries
from files import parts, storage
from files.models import ARRIVAL_TIME, File
from vbatch_site import clock, erasure, retention

# A task that has not moved its batch for this long may be lost; ringing again costs one query if it is not.
RING_AGAIN = timedelta(seconds=15)
RINGS_AT_ONCE = 500
_SCHEDULED_AHEAD = timedelta(minutes=3)  # more than a schedule of each minute ever is, while clocks agree to a minute


def sweep() -> None:
    """Do every repair once; one process at a time."""
    with batch_lock("sweep") as mine:
        if mine:
            expire_overdue()
            ring_again()
            purge_ended()
            storage.delete_abandoned(ARRIVAL_TIME.total_seconds())
            retention.sweep(clock.ask())
            deliveries.sweep(clock.ask())
            _keep_schedule(clock.ask())
            # Last: a storage that is away, or holds on to a file, keeps nothing else from being done.
            _remove_files()


def _remove_files() -> None:
    """Remove what nobody needs any more, unless a backup is copying."""
    with batch_lock(REMOVING) as mine:
        if mine:
            delete_unneeded_bytes()
            parts.sweep(clock.ask())
            erasure.sweep()


def _keep_schedule(now: datetime) -> None:
    """Let what runs once a minute do so after the clock was set back, too."""
    every_minute = Schedule.objects.filter(schedule_type=Schedule.MINUTES, minutes=1)
    every_minute.filter(next_run__gt=now + _SCHEDULED_AHEAD).update(next_run=now)


def expire_overdue() -> None:
    """End batches whose completion window has passed."""
    for batch in Batch.objects.overdue(clock.ask()):
        try:
            with transaction.atomic():
                if batch.status == BatchStatus.VALIDATING:
                    batch.move(BatchStatus.EXPIRED, reason="completion window passed")
                    continue
                batch.move(BatchStatus.FINALIZING, reason="completion window passed")
                doorbell.ring_finalize(batch.pk)
        except StaleTransition:
            continue  # it ended, or was cancelled, a moment ago


def ring_again(patience: timedelta = RING_AGAIN) -> None:
    """Ring for batches that wait for a task which may be lost."""
    now = clock.ask()
    # One that was rung in the future was rung before the clock was set back.
    lately = Q(rung_at__range=(now - patience, now + RING_AGAIN))
    for batch in Batch.objects.filter(~lately, status__in=WAITS_FOR_TASK).order_by("rung_at")[:RINGS_AT_ONCE]:
        with transaction.atomic():
            if not Batch.objects.filter(pk=batch.pk, rung_at=batch.rung_at).update(rung_at=now):
                continue
            if batch.status == BatchStatus.VALIDATING:
                doorbell.ring_validate(batch.pk)
            else:
                doorbell.ring_finalize(batch.pk)


def purge_ended() -> None:
    """Delete rows that a crash between the end of a batch and its purge left behind."""
    for batch in Batch.objects.filter(status__in=TERMINAL, purged_at=None)[:100]:
        purge(batch.pk)


def delete_unneeded_bytes() -> None:
    """Delete expired files, and the bytes of deleted ones that no running batch reads."""
    now = clock.ask()
    ResultIndex.objects.filter(expires_at__lte=now).delete()
    File.objects.expired(now).update(deleted_at=now)
    in_use = Batch.objects.exclude(status__in=TERMINAL).values("input_file_id")
    continuing = Batch.objects.filter(status=BatchStatus.VALIDATING).exclude(continue_from="")
    earlier = Batch.objects.filter(pk__in=continuing.values("continue_from"), output_file_id__isnull=False)
    unneeded = File.objects.gone(now).exclude(pk__in=in_use)
    for name in ("input_file_id", "output_file_id"):
        unneeded = unneeded.exclude(pk__in=earlier.values(name))
    for file in unneeded[:1000]:
        storage.delete(file.path)
        file.delete()
        # The index goes with the last of the files that it leads into.
        if batch_id := line_index.batch_of(file.path):
            if not _has_files(batch_id):
                storage.delete(line_index.name_for(batch_id))


def _has_files(batch_id: str) -> bool:
    ids = Batch.objects.filter(pk=batch_id).values_list("output_file_id", "error_file_id").first() or ()
    return File.objects.filter(pk__in=[pk for pk in ids if pk]).exists()
