"""Lend the GPUs of this host's slots to services that people start: a device is one engine's or one service's.

A service that waits asks for devices. A slot that has one of them gives way as its scheduler says, the service gets
the devices once no engine is on them, and the slot loads nothing until the service has ended.
"""

import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from batches.locks import lock_key
from vbatch_site import clock
from workers import devices
from workers.models import ENDED_SERVICES, Launcher, Service, ServiceState

# After this silence of its worker an engine is taken for dead: its guard ended it with the worker.
WORKER_SILENCE = timedelta(seconds=15)
OTHERS = "It waits for GPUs of this host that other services use."
ENGINES = "It waits for GPUs of this host whose engine is still used."


def _lock(host: str) -> None:
    """Let one transaction at a time decide whose the devices of a host are."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [lock_key(f"devices of {host}")])


def _services(host: str) -> "QuerySet[Service]":
    """Return the services of a host that have devices, or asked for them; a cancelled one until its process ended."""
    return Service.objects.filter(
        Q(pid__isnull=False) | ~Q(state__in=ENDED_SERVICES), host=host, launcher=Launcher.LOCAL
    )


def _devices(rows: "QuerySet[Service]") -> set[str]:
    return {device for gpus in rows.values_list("gpus", flat=True) for device in gpus}


def _engines(host: str) -> set[str]:
    """Return the devices that slots' own engines are on."""
    alive = Q(worker__stopped_at=None, worker__seen_at__gt=clock.ask() - WORKER_SILENCE)
    own = Service.objects.filter(alive, host=host, launcher=Launcher.WORKER).exclude(state__in=ENDED_SERVICES)
    return _devices(own)


def give(service: Service, host: str) -> bool:
    """Give a waiting service the devices that it asked for and make it ready to start; else note why it waits on."""
    waiting = Service.objects.filter(pk=service.pk, state=ServiceState.PENDING)
    minutes = service.config.get("resources", {}).get("time_limit")
    with transaction.atomic():
        _lock(host)
        used = _engines(host)
        chosen = _choose(service, _devices(_services(host).exclude(pk=service.pk)), used)
        if chosen is None or used & set(chosen):
            said = {"error": OTHERS, "host": "", "gpus": []}
            if chosen:
                said = {"error": ENGINES, "host": host, "gpus": chosen}
            if any(getattr(service, name) != value for name, value in said.items()):
                waiting.update(**said)
            return False
        ends_at = timezone.now() + timedelta(minutes=minutes) if minutes else None
        # It may have been cancelled a moment ago.
        return bool(waiting.update(state=ServiceState.BUILDING, host=host, gpus=chosen, ends_at=ends_at, error=""))


def _choose(service: Service, taken: Collection[str], used: Collection[str]) -> list[str] | None:
    """Return the devices for a service, those without an engine first; None when other services have too many."""
    if not service.gpu_count:
        return []
    named = service.config.get("environment", {}).get("CUDA_VISIBLE_DEVICES")
    wanted = named.split(",") if named else devices.present()
    free = [device for device in wanted if device not in taken]
    if named:
        return free if len(free) == len(wanted) else None
    free.sort(key=lambda device: device in used)
    return free[: service.gpu_count] if len(free) >= service.gpu_count else None


def look(own: Sequence[str]) -> tuple[datetime | None, bool]:
    """Return since when a service waits for one of a slot's devices, and whether one has any of them."""
    waiting, has = [], False
    for created_at, state, gpus in _services(socket.gethostname()).values_list("created_at", "state", "gpus"):
        if set(gpus) & set(own):
            if state == ServiceState.PENDING:
                waiting.append(created_at)
            else:
                has = True
    return min(waiting, default=None), has


@contextmanager
def claim(own: Sequence[str]) -> Iterator[bool]:
    """Yield whether an engine may be started on a slot's devices; write its row inside the block."""
    with transaction.atomic():
        if own:
            _lock(socket.gethostname())
        yield not own or not look(own)[1]
