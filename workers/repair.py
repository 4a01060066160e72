"""Take note of workers and services of this host that were killed."""

import socket
from collections.abc import Iterable

import psutil

from workers import registry, services
from workers.launchers.local import LocalLauncher
from workers.models import ENDED_SERVICES, Launcher, Service, Worker

# Between a worker's process and its row, the imports.
_START_SECONDS = 120


def killed() -> Iterable[str]:
    """Yield what was taken note of."""
    host = socket.gethostname()
    dead = {row.pk for row in Worker.objects.filter(host=host, stopped_at=None) if not _lives(row)}
    if dead:
        registry.bury(dead)
        yield f"took note of workers of this host that were killed: {len(dead)}"
    rows = Service.objects.filter(launcher=Launcher.LOCAL, host=host).exclude(state__in=ENDED_SERVICES)
    by_id = {row.job_id: row for row in rows}
    for job_id, sight in LocalLauncher().look([services.known(row) for row in by_id.values()]).items():
        if sight.phase.is_end:
            services.note(by_id[job_id], sight, None)
            yield f"service {job_id} has ended: {sight.why}"


def _lives(worker: Worker) -> bool:
    """Return whether a worker's process is there: its number may be somebody else's by now."""
    try:
        process = psutil.Process(worker.pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        began = worker.started_at.timestamp()
        # A clock that was set since moves when a process seems to have begun. A cluster's that only looks like the
        # worker costs nothing but the wait until the leases run out.
        is_same = began - _START_SECONDS < process.create_time() <= began + 1
        return is_same or "qcluster" in " ".join(process.cmdline())
    except psutil.Error:
        return False
