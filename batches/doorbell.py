"""Queue django-q2 tasks. Call inside the transaction that makes the work: the ORM broker's row commits with it.

A task only says that there may be work; ringing twice is harmless.
"""

from django_q.tasks import async_task

_DEFAULT = "default"
_GPU = "gpu"


def ring_validate(batch_id: str) -> None:
    """Ask the default cluster to validate a batch."""
    async_task("batches.tasks.validate", batch_id, cluster=_DEFAULT)


def ring_finalize(batch_id: str) -> None:
    """Ask the default cluster to write a batch's files."""
    async_task("batches.tasks.finalize", batch_id, cluster=_DEFAULT)


def ring_deliver() -> None:
    """Wake the couriers of the default cluster: there is a delivery to make."""
    async_task("batches.tasks.deliver", cluster=_DEFAULT)


def ring_remove() -> None:
    """Ask the default cluster to remove the bytes of deleted files."""
    async_task("batches.tasks.remove_bytes", cluster=_DEFAULT)


def ring_gpu() -> None:
    """Wake the gpu workers: there is a shard to claim."""
    async_task("workers.tasks.wake", cluster=_GPU)
