"""What a person may tell a worker: to take no more work, to give its GPU up, to load a model.

It is written in the worker's row, which its runner reads with each sign of life; it counts until the process ends.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import Q

from vbatch_site import audit, clock
from workers import registry
from workers.models import ENDED_SERVICES, ServedModel, Service, ServiceState, Wanted, Worker


class TooLate(Exception):
    """The worker has ended, or is told otherwise already."""


@dataclass(frozen=True, slots=True)
class Orders:
    """What a runner is told."""

    wanted: str = Wanted.WORK
    model: str | None = None  # to load, before all but urgent work
    since: datetime | None = None  # when that was asked for

    @property
    def takes_work(self) -> bool:
        """Whether shards are claimed and models loaded."""
        return self.wanted == Wanted.WORK

    @property
    def asked(self) -> dict[str, datetime]:
        """The model to load and since when, as the scheduler has those that live requests wait for."""
        return {self.model: self.since} if self.model and self.since else {}

    def frees_gpu(self, others: Mapping[str, datetime]) -> bool:
        """Return whether the engine is stopped once nothing is in hand; `others` are those that wait for the GPU."""
        return self.wanted in (Wanted.STOP, Wanted.UNLOAD) or (self.wanted == Wanted.DRAIN and bool(others))


def drain(worker_id: str) -> None:
    """Have a worker finish what it has in hand and take nothing more; its model stays loaded. Raises TooLate."""
    _write(worker_id, wanted=Wanted.DRAIN)


def stop(worker_id: str) -> None:
    """Have a worker finish what it has in hand, take nothing more, and stop its engine. Raises TooLate."""
    _write(worker_id, wanted=Wanted.STOP)


def resume(worker_id: str) -> None:
    """Have a worker go on. Raises TooLate."""
    _write(worker_id, wanted=Wanted.WORK)


def unload(worker_id: str) -> None:
    """Have a worker that works stop its engine once nothing is in hand; it goes on after. Raises TooLate."""
    _write(worker_id, Q(wanted=Wanted.WORK), wanted=Wanted.UNLOAD, load=None)


def load(worker_id: str, model: ServedModel) -> None:
    """Have a worker load a model, as if live requests waited for it. Raises TooLate."""
    _write(worker_id, Q(wanted=Wanted.WORK), load=model, load_asked_at=clock.ask())


def _write(worker_id: str, only: Q | None = None, **fields: Any) -> None:
    with transaction.atomic():
        if not Worker.objects.filter(only or Q(), pk=worker_id, stopped_at=None).update(**fields):
            raise TooLate(worker_id)
        audit.note_change(worker_id)


def beat(holder: str) -> Orders:
    """Note that a worker lives, and return what it is told."""
    registry.beat(holder)
    worker = Worker.objects.select_related("load").get(pk=holder)
    engines = Service.objects.filter(worker=holder).exclude(state__in=ENDED_SERVICES)
    if worker.wanted == Wanted.UNLOAD and not engines.exists():
        Worker.objects.filter(pk=holder, wanted=Wanted.UNLOAD).update(wanted=Wanted.WORK)
        worker.wanted = Wanted.WORK
    if worker.load is None or worker.load_asked_at is None:
        return Orders(worker.wanted)
    failed_at, model = worker.load.load_failed_at, worker.load
    could_not = not model.enabled or (failed_at is not None and failed_at > worker.load_asked_at)
    if could_not or engines.filter(model=model, state=ServiceState.RUNNING).exists():
        Worker.objects.filter(pk=holder, load_asked_at=worker.load_asked_at).update(load=None)
        return Orders(worker.wanted)
    return Orders(worker.wanted, model.name, worker.load_asked_at)
