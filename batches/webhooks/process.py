"""The courier of this worker process: started when django-q2 spawns it on the default cluster, stopped with it."""

from multiprocessing.util import Finalize
from typing import Any

_DEFAULT_CLUSTER = "default"
_courier: Any = None


def start_courier(**_: Any) -> None:
    """Start the courier if this process is a worker of the default cluster."""
    from django_q.conf import Conf

    global _courier
    if Conf.CLUSTER_NAME != _DEFAULT_CLUSTER or _courier is not None:
        return
    # Imported here: the parent of the workers must not start threads or an event loop before it forks.
    from batches.webhooks.courier import CourierThread

    _courier = CourierThread()
    # A forked worker leaves through os._exit, which runs these and no atexit handlers.
    Finalize(None, _courier.stop, exitpriority=100)
    _courier.start()


def wake() -> None:
    """Make the courier look for work now."""
    if _courier is not None:
        _courier.wake()
