"""What django-q2 calls on the default cluster."""

from batches import finalize as finalizing
from batches import sweep as sweeping
from batches import validate as validating


def validate(batch_id: str) -> bool:
    """Validate a batch."""
    return validating.validate(batch_id)


def finalize(batch_id: str) -> bool:
    """Write a batch's files."""
    return finalizing.finalize(batch_id)


def sweep() -> None:
    """Repair by the clock."""
    sweeping.sweep()
