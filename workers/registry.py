"""What the database knows of workers and engines: every write about them is here."""

import os
import socket

from django.conf import settings
from django.utils import timezone

from workers import catalogue, machine
from workers.engine import EngineSpec, split_arguments
from workers.models import ENDED_SERVICES, ServedModel, Service, ServiceState, Worker


def beat(holder: str) -> None:
    """Note that a worker lives."""
    now = timezone.now()
    Worker.objects.update_or_create(
        pk=holder,
        defaults={"seen_at": now, "stopped_at": None},
        create_defaults={"host": socket.gethostname(), "pid": os.getpid(), "seen_at": now, "started_at": now},
    )


def stopped(holder: str) -> None:
    """Note that a worker ended in order."""
    Worker.objects.filter(pk=holder).update(stopped_at=timezone.now())


def spec_for(name: str, holder: str) -> EngineSpec | None:
    """Return how to start a model's engine, None when the catalogue no longer has it."""
    model = ServedModel.objects.filter(name=name, enabled=True).first()
    if model is None:
        return None
    # The simulated engine takes vLLM's arguments too, but what suits this machine's processor is no matter to it.
    machine_arguments = machine.engine_arguments() if settings.VBATCH_ENGINE == "vllm" else ""
    return EngineSpec(
        name=model.name,
        source=catalogue.source_of(model),
        arguments=split_arguments(machine_arguments, settings.VBATCH_VLLM_ARGS, model.engine_args),
        kind=settings.VBATCH_ENGINE,
        log=settings.VBATCH_HOME / "logs" / f"engine-{holder}.log",
    )


def starting(name: str, holder: str, url: str) -> int:
    """Write a service that is being started, after closing what a killed predecessor left; return its id."""
    beat(holder)
    ended(holder)
    model = ServedModel.objects.get(name=name)
    return Service.objects.create(model=model, worker_id=holder, url=url, state=ServiceState.STARTING).pk


def ready(service_id: int, seconds: float, pid: int | None) -> None:
    """Note that an engine answers, and what its load took."""
    now = timezone.now()
    Service.objects.filter(pk=service_id).update(state=ServiceState.RUNNING, ready_at=now, pid=pid)
    ServedModel.objects.filter(services=service_id).update(load_seconds=seconds, load_error="", load_failed_at=None)


def failed(service_id: int, why: str) -> None:
    """Note that an engine could not be started."""
    now = timezone.now()
    Service.objects.filter(pk=service_id).update(state=ServiceState.FAILED, ended_at=now, error=why)
    ServedModel.objects.filter(services=service_id).update(load_error=why, load_failed_at=now)


def ended(holder: str) -> None:
    """Note that a worker's engine was stopped."""
    _end(holder, ServiceState.COMPLETED, "")


def crashed(holder: str) -> None:
    """Note that a worker's engine died."""
    _end(holder, ServiceState.FAILED, "The process died.")


def _end(holder: str, state: ServiceState, error: str) -> None:
    live = Service.objects.filter(worker_id=holder).exclude(state__in=ENDED_SERVICES)
    live.update(state=state, ended_at=timezone.now(), error=error)
