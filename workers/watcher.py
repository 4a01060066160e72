"""Look after launched services: start what waits on this host, note what became of the others, stop what shall end.

A thread in each gpu worker process; one of them does it for SLURM, and one of each host for that host's own.
"""

import asyncio
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import aiohttp
from django.conf import settings
from django.db import connections
from django.db.models import Q, QuerySet
from django.utils import timezone

from batches.locks import batch_lock
from workers import lending, scaling, services
from workers.keys import engine_key
from workers.launchers import Sight
from workers.launchers.local import LocalLauncher
from workers.launchers.slurm import SlurmLauncher
from workers.models import ENDED_SERVICES, Launcher, Service, ServiceState

logger = logging.getLogger(__name__)

STEP_SECONDS = 1.0  # between two looks
SWEEP_SECONDS = 3600.0  # between two deletions of what is kept for days
ANSWER_SECONDS = 5.0  # that a probe waits
SUBMIT_TIME = timedelta(minutes=2)  # a row without a job's id is left of a crash after this
STOP_TIME = timedelta(seconds=15)  # from the polite end of a local service to the kill

_local = LocalLauncher()
_slurm = SlurmLauncher()


class WatcherThread:
    """Calls `step` again and again until it is stopped."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._main, name="watcher", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ask(self) -> None:
        """Ask it to stop."""
        self._stop.set()

    def stop(self) -> None:
        """Stop; services go on."""
        self._stop.set()
        self._thread.join(ANSWER_SECONDS)

    def _main(self) -> None:
        swept_at = -math.inf
        while not self._stop.wait(STEP_SECONDS):
            try:
                step()
                if time.monotonic() - swept_at > SWEEP_SECONDS:
                    swept_at = time.monotonic()
                    _once("old services", lambda: services.sweep(timezone.now()))
            except Exception:
                logger.exception("services could not be watched", extra={"action": "watch_failed"})
                connections.close_all()
        connections.close_all()


def step() -> None:
    """Do everything once."""
    host = socket.gethostname()
    # Asked every second, and nearly always answered no: one query instead of eight.
    if settings.VBATCH_LAUNCHER != Launcher.SLURM and not _in_hand(host).exists():
        return
    _once(f"services on {host}", lambda: _watch_local(host))
    if settings.VBATCH_LAUNCHER == Launcher.SLURM or _live(Launcher.SLURM).exists():
        _once("services on slurm", _watch_slurm)
    services.fail_unsubmitted(timezone.now() - SUBMIT_TIME)


def _in_hand(host: str) -> "QuerySet[Service]":
    """Return launched services that have not ended, and those of this host whose process may still run."""
    return services.launched().filter(~Q(state__in=ENDED_SERVICES) | Q(host=host, pid__isnull=False))


def _once(name: str, work: Callable[[], None]) -> None:
    with batch_lock(name) as mine:
        if mine:
            work()


def _live(launcher: Launcher) -> "QuerySet[Service]":
    return Service.objects.filter(launcher=launcher).exclude(state__in=ENDED_SERVICES).exclude(job_id="")


def _watch_slurm() -> None:
    rows = list(_live(Launcher.SLURM).order_by("created_at"))
    _note(rows, _slurm.look([services.known(row) for row in rows]))
    if settings.VBATCH_LAUNCHER == Launcher.SLURM:
        scaling.step()


def _watch_local(host: str) -> None:
    own = Service.objects.filter(launcher=Launcher.LOCAL)
    for row in own.filter(state__in=ENDED_SERVICES, host=host, pid__isnull=False):
        _finish(row)
    live = _live(Launcher.LOCAL).order_by("created_at")
    rows = list(live.filter(host=host).exclude(state=ServiceState.PENDING))
    _note(rows, _local.look([services.known(row) for row in rows]))
    for row in live.filter(host__in=("", host), state=ServiceState.PENDING):
        _start(row, host)


def _finish(row: Service) -> None:
    """See to it that the process of a cancelled service ends."""
    job = services.known(row)
    if _local.look([job])[job.job_id].phase.is_end:
        Service.objects.filter(pk=row.pk).update(pid=None, process_started=None)
    elif row.ended_at is not None and timezone.now() - row.ended_at > STOP_TIME:
        _local.kill(job)
    else:
        _local.stop(job)


def _start(row: Service, host: str) -> None:
    """Start a waiting service if the GPUs that it asked for are free."""
    if not lending.give(row, host):
        return
    row.refresh_from_db()
    try:
        sight = _local.start(services.known(row))
    except OSError as error:
        services.cancel(row, ServiceState.FAILED, f"Its process could not be started: {error}")
        return
    Service.objects.filter(pk=row.pk).update(pid=sight.pid, process_started=sight.process_started)


def _note(rows: Sequence[Service], sights: dict[str, Sight]) -> None:
    seen = [(row, sights[row.job_id]) for row in rows if row.job_id in sights]
    answers = asyncio.run(_probe([(sight.url, engine_key(row.pk)) for row, sight in seen]))
    for (row, sight), answer in zip(seen, answers, strict=True):
        services.note(row, sight, answer)


async def _probe(engines: Sequence[tuple[str, str]]) -> list[int | None]:
    """Return what engines answer `/v1/models`: their context in tokens, 0 if they don't say, None for no answer."""
    if not any(url for url, _ in engines):
        return [None] * len(engines)
    timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        return await asyncio.gather(*(_answers(session, url, key) for url, key in engines))


async def _answers(session: aiohttp.ClientSession, url: str, key: str) -> int | None:
    if not url:
        return None
    try:
        async with session.get(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"}) as response:
            if response.status != 200:
                return None
            return int((await response.json())["data"][0].get("max_model_len") or 0)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError):
        return None
