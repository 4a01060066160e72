"""What django-q2 calls on the default cluster."""

import logging
import time
from collections.abc import Callable

from django.db import InterfaceError, OperationalError, close_old_connections

from batches import finalize as finalizing
from batches import sweep as sweeping
from batches import validate as validating
from batches.webhooks import process as couriers
from vbatch_site.logs import about

logger = logging.getLogger(__name__)

_LET_GO_SECONDS = 0.3  # in which the database notices that a session is over, and frees the batch's lock


def validate(batch_id: str) -> bool:
    """Validate a batch."""
    return _do(validating.validate, batch_id)


def finalize(batch_id: str) -> bool:
    """Write a batch's files."""
    return _do(finalizing.finalize, batch_id)


def _do(task: Callable[[str], bool], batch_id: str) -> bool:
    """Do a task, and once more when its connection was lost: the sweep would ring for it only some seconds later."""
    with about(batch=batch_id):
        try:
            return task(batch_id)
        except (OperationalError, InterfaceError):
            logger.warning("connection lost, once more", extra={"action": "database_lost", "batch": batch_id})
            close_old_connections()
            time.sleep(_LET_GO_SECONDS)
            return task(batch_id)


def deliver() -> None:
    """Let this process's courier look for deliveries now."""
    couriers.wake()


def remove_bytes() -> None:
    """Remove the bytes of deleted files that no batch needs; the sweep does what is lost here."""
    sweeping.delete_unneeded_bytes()


def sweep() -> None:
    """Repair by the clock."""
    sweeping.sweep()
