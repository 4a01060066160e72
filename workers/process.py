"""The runner of this gpu worker process: started when django-q2 spawns it, stopped with it.

The runner lives in a thread beside the worker's task loop, so that the engine and the requests in flight go on from
task to task. A task is only a doorbell; a lost one is made up for by the runner's own look at the database.
"""

import logging
import os
import signal
import socket
import sys
from multiprocessing.util import Finalize
from typing import Any

from django.conf import settings

from vbatch_site.descriptors import raise_limit

logger = logging.getLogger(__name__)

_GPU_CLUSTER = "gpu"
_HOST_CHARACTERS = 40  # of a host's name, which may have 64; whose row it is says `host`
_runner: Any = None


def new_holder() -> str:
    """Return a name for this process that leases and its row have room for, whatever the host is called."""
    return f"{socket.gethostname()[:_HOST_CHARACTERS]}-{os.getpid()}-{os.urandom(3).hex()}"


def start_runner(**_: Any) -> None:
    """Start the runner if this process is a worker of the gpu cluster."""
    from django_q.conf import Conf

    global _runner
    if Conf.CLUSTER_NAME != _GPU_CLUSTER or _runner is not None:
        return
    # Each line in an engine takes one, and each shard in hand.
    raise_limit()
    # Imported here: the parent of the workers must not start threads or an event loop before it forks.
    from workers.thread import RunnerThread
    from workers.watcher import WatcherThread

    watcher = WatcherThread()
    Finalize(None, watcher.ask, exitpriority=101)
    Finalize(None, watcher.stop, exitpriority=99)
    watcher.start()
    _runner = RunnerThread(new_holder())
    # A forked worker leaves through os._exit, which runs these and no atexit handlers.
    Finalize(None, _runner.stop, exitpriority=100)
    # A signal to the whole process group, as systemd sends it, must not kill the engine's owner in mid-commit.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _runner.start()
    logger.info("gpu worker started", extra={"action": "worker_start", "engine": settings.VBATCH_ENGINE})


def wake() -> None:
    """Make the runner look for work now."""
    if _runner is not None:
        _runner.wake()
