"""What a person may tell a batch to do, from the API, the admin or the console."""

from django.db import transaction

from batches import doorbell
from batches.models import Batch
from batches.states import BatchStatus


def cancel(batch: Batch, by: str) -> None:
    """Start to cancel a batch; raise StaleTransition when it is past that."""
    with transaction.atomic():
        batch.move(BatchStatus.CANCELLING, reason=f"asked for by {by}")
        # Finalizing waits for workers that hold lines of it; they let go within a second and ring again.
        doorbell.ring_finalize(batch.pk)
