"""What django-q2 calls on the default cluster."""

from batches import finalize as finalizing
from batches import sweep as sweeping
from batches import validate as validating
from batches.webhooks import process as couriers
from vbatch_site.logs import about


def validate(batch_id: str) -> bool:
    """Validate a batch."""
    with about(batch=batch_id):
        return validating.validate(batch_id)


def finalize(batch_id: str) -> bool:
    """Write a batch's files."""
    with about(batch=batch_id):
        return finalizing.finalize(batch_id)


def deliver() -> None:
    """Let this process's courier look for deliveries now."""
    couriers.wake()


def remove_bytes() -> None:
    """Remove the bytes of deleted files that no batch needs; the sweep does what is lost here."""
    sweeping.delete_unneeded_bytes()


def sweep() -> None:
    """Repair by the clock."""
    sweeping.sweep()
