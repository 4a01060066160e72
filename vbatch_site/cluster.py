"""Let a django-q2 cluster survive the kill of any of its processes, and leave none behind.

Its processes share queues whose locks are semaphores, and whoever waits for a task holds one. A kill -9 (the kernel's
when memory runs out is one) leaves that semaphore taken for ever: new workers wait, nothing is done, nothing is said.
"""

import fcntl
import os

from django_q import cluster
from django_q.queues import Queue

from vbatch_site import lineage


class KernelLock:
    """A lock between a process and those that it forks, which the kernel gives back when its holder dies."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("lock")

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take it; wait without end unless told not to wait at all."""
        if timeout is not None:
            raise NotImplementedError("the kernel waits for ever or not at all")
        try:
            # Of the process and not of the open file, so that a fork does not inherit it.
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX if block else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Give it back."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *exc: object) -> None:
        self.release()


class SafeQueue(Queue):  # type: ignore[misc]
    """A queue between processes any of which may be killed."""

    def __init__(self, maxsize: int = 0) -> None:
        super().__init__(maxsize)
        self._rlock, self._wlock = KernelLock(), KernelLock()


def prepare() -> None:
    """Make this process ready to run a cluster; call before it starts. Linux only; elsewhere nothing happens."""
    if hasattr(os, "memfd_create"):
        cluster.Queue = SafeQueue
        lineage.tie()
