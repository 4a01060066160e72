"""What the database knows of workers and engines: every write about them is here."""

import logging
import os
import socket
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from batches import leases
from batches.models import Provenance
from vbatch_site import clock
from workers import catalogue, counting, demand, lending, machine
from workers.engine import EngineSpec, split_arguments
from workers.models import ENDED_SERVICES, ServedModel, Service, ServiceState, Wanted, Worker
from workers.provenance import Facts, digest

logger = logging.getLogger(__name__)


def beat(holder: str) -> None:
    """Note that a worker lives."""
    now = clock.ask()
    if not Worker.objects.filter(pk=holder).update(seen_at=now, stopped_at=None):
        Worker.objects.create(pk=holder, host=socket.gethostname(), pid=os.getpid(), seen_at=now, started_at=now)


def stopped(holder: str) -> None:
    """Note that a worker ended in order."""
    Worker.objects.filter(pk=holder).update(stopped_at=timezone.now())


def spec_for(name: str, holder: str, environment: dict[str, str]) -> EngineSpec | None:
    """Return how to start a model's engine, None when the catalogue no longer has it."""
    model = ServedModel.objects.filter(name=name, enabled=True).first()
    if model is None:
        return None
    # The simulated engine takes vLLM's arguments too, but what suits this machine's processor is no matter to it.
    is_real = settings.VBATCH_ENGINE == "vllm"
    machine_arguments = machine.engine_arguments() if is_real else ""
    machine_environment = machine.engine_environment() if is_real else {}
    return EngineSpec(
        name=model.name,
        source=catalogue.source_of(model),
        arguments=split_arguments(machine_arguments, settings.VBATCH_VLLM_ARGS, model.engine_args),
        kind=settings.VBATCH_ENGINE,
        log=settings.VBATCH_HOME / "logs" / f"engine-{holder}.log",
        endpoints=tuple(model.endpoints),
        environment=machine_environment | environment,
    )


def starting(name: str, holder: str, url: str, gpus: Sequence[str] = ()) -> int | None:
    """Write a service that is being started; return its id, None while its GPUs are lent."""
    beat(holder)
    model = ServedModel.objects.get(name=name)
    with lending.claim(gpus) as is_free:
        if not is_free:
            return None
        row = Service(model=model, worker_id=holder, url=url, state=ServiceState.STARTING)
        row.host, row.gpus = socket.gethostname(), list(gpus)
        row.save()
        return row.pk


def ready(service_id: int, seconds: float, pid: int | None, max_model_len: int | None = None) -> None:
    """Note that an engine answers, what its load took, and its tokens of context."""
    now = clock.now()
    Service.objects.filter(pk=service_id).update(state=ServiceState.RUNNING, ready_at=now, pid=pid)
    ServedModel.objects.filter(services=service_id).update(
        load_seconds=seconds, load_error="", load_failed_at=None, max_model_len=max_model_len
    )
    demand.met(service_id)
    counting.started(service_id, counting.LOAD, seconds)


def known_as(service_id: int, facts: Facts) -> str:
    """Keep the facts about an engine, and return their name."""
    found, _ = Provenance.objects.get_or_create(pk=digest(facts), defaults={"facts": facts})
    Service.objects.filter(pk=service_id).update(provenance=found)
    return found.pk


def failed(service_id: int, why: str) -> None:
    """Note that an engine could not be started, or died."""
    now = clock.now()
    service = Service.objects.filter(pk=service_id)
    started = service.filter(ready_at__isnull=False).exists()
    service.update(state=ServiceState.FAILED, ended_at=now, error=why)
    if not started:
        ServedModel.objects.filter(services=service_id).update(load_error=why, load_failed_at=now)
    counting.ended_badly(service_id, had_started=started)


def draining(service_id: int) -> None:
    """Note that an engine gets no more live requests."""
    Service.objects.filter(pk=service_id).update(state=ServiceState.DRAINING)


def slept(service_id: int) -> None:
    """Note that an engine was put to sleep."""
    Service.objects.filter(pk=service_id).update(state=ServiceState.SLEEPING)


def woke(service_id: int, seconds: float) -> None:
    """Note that an engine was woken, and what that took."""
    Service.objects.filter(pk=service_id).update(state=ServiceState.RUNNING)
    ServedModel.objects.filter(services=service_id).update(wake_seconds=seconds)
    demand.met(service_id)
    counting.started(service_id, counting.WAKE, seconds)


def ended(service_id: int) -> None:
    """Note that an engine was stopped."""
    Service.objects.filter(pk=service_id).update(state=ServiceState.COMPLETED, ended_at=timezone.now())


def bury(holders: Collection[str]) -> None:
    """Take over from workers that are certainly dead: what they had leased is free, and their engines are gone."""
    if shards := leases.free(holders):
        logger.warning("took over from a dead worker", extra={"action": "takeover", "shards": shards})
    now = timezone.now()
    Worker.objects.filter(pk__in=holders, stopped_at=None).update(stopped_at=now)
    Service.objects.filter(fed_by__in=holders).update(fed_by=None)
    live = Service.objects.filter(worker__in=holders).exclude(state__in=ENDED_SERVICES)
    live.update(state=ServiceState.FAILED, ended_at=now, error="Its worker failed.")


def facts(holder: str) -> tuple[dict[str, float], dict[str, int]]:
    """Return what loading each model costs a worker in seconds, and how many others that take work have it loaded."""
    asleep = set(
        Service.objects.filter(worker_id=holder, state=ServiceState.SLEEPING).values_list("model__name", flat=True)
    )
    prices = {
        name: wake if name in asleep and wake is not None else load
        for name, load, wake in ServedModel.objects.values_list("name", "load_seconds", "wake_seconds")
        if load is not None
    }
    alive = clock.now() - timedelta(seconds=settings.VBATCH_LEASE_SECONDS)
    live = Service.objects.filter(
        state__in=[ServiceState.STARTING, ServiceState.RUNNING],
        worker__seen_at__gt=alive,
        worker__stopped_at=None,
        worker__wanted=Wanted.WORK,
    )
    return prices, dict(Counter(live.exclude(worker_id=holder).values_list("model__name", flat=True)))
