"""Launched services: made from a recipe, watched, cancelled. Every write about them is here.

Their rows move as what the launcher sees of their jobs, combined with whether `/v1/models` answers.
"""

import logging
import secrets
import shutil
import socket
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from django.conf import settings
from django.db import close_old_connections, transaction
from django.db.models import F, Q, QuerySet
from django.utils import timezone

from batches import leases
from vbatch_site import clock
from vbatch_site.models import Project
from workers import catalogue, counting, demand, orders, registry
from workers.keys import engine_key
from workers.launchers import Known, Launcher, LaunchError, Phase, Sight, tail
from workers.launchers.local import LocalLauncher
from workers.launchers.slurm import SlurmLauncher
from workers.models import CHAT_ENDPOINTS, ENDED_SERVICES, ServedModel, Service, ServiceState
from workers.models import Launcher as Launchers
from workers.recipes import Recipe, Settings

logger = logging.getLogger(__name__)

MISSES = 3  # looks in a row without an answer, after which a running service counts as starting again
LOG_LINES = 200
LOG_LIFE = timedelta(days=7)  # in which somebody will ask why a service ended

_LAUNCHERS: dict[str, Launcher] = {Launchers.LOCAL: LocalLauncher(), Launchers.SLURM: SlurmLauncher()}


def launched() -> "QuerySet[Service]":
    """Return the services that launchers started."""
    return Service.objects.exclude(launcher=Launchers.WORKER)


def folder_of(service: Service) -> Path:
    """Return where a service's order, log and place are."""
    return Path(settings.VBATCH_HOME / "services" / service.name)


def known(service: Service) -> Known:
    """Return what a launcher is told of a service."""
    return Known(
        job_id=service.job_id,
        folder=folder_of(service),
        host=service.host,
        pid=service.pid,
        process_started=service.process_started,
        ends_at=service.ends_at,
        gpus=tuple(service.gpus),
    )


def _model(name: str) -> ServedModel:
    """Return a model's catalogue entry; one that nobody else can ask for is made where there is none."""
    # Whoever may start services may start any model; that others may ask for it too is for the operator to say.
    return ServedModel.objects.get_or_create(
        name=name, defaults={"source": name, "endpoints": CHAT_ENDPOINTS, "enabled": False}
    )[0]


def create(project: Project | None, recipe: Recipe, config: Settings) -> list[Service]:
    """Start what a recipe makes of a request: one service, or the replicas of a group.

    Raises RecipeError or LaunchError; nothing is left of a group that could be started only in part.
    """
    parallel = catalogue.tensor_parallel(config.text("VLLM_MODEL"))
    close_old_connections()  # back to the pool: SLURM's commands take their time
    plans = orders.plan(recipe, config, settings.VBATCH_LAUNCHER, parallel)
    model = _model(config.text("VLLM_MODEL"))
    made: list[Service] = []
    try:
        for index, plan in enumerate(plans):
            made.append(_submit(project, recipe, config, model, plan, index if plan.is_replica else None))
    except LaunchError:
        for service in made:
            cancel(service)
        raise
    if made[0].replica_index is not None:
        group = f"sg-{made[0].job_id}"
        Service.objects.filter(pk__in=[service.pk for service in made]).update(group_id=group)
        for service in made:
            service.group_id = group
    return made


def _submit(
    project: Project | None, recipe: Recipe, config: Settings, model: ServedModel, plan: orders.Plan, index: int | None
) -> Service:
    service = Service(
        model=model,
        project=project,
        launcher=settings.VBATCH_LAUNCHER,
        recipe=recipe.path,
        config=config.as_config(),
        gpu_count=plan.gpu,
        state=ServiceState.PENDING,
        name=f"{recipe.name}-{secrets.token_hex(8)}",
        replica_index=index,
    )
    service.save()
    folder = folder_of(service)
    order = orders.order(plan, service.name, model, recipe, config, service.launcher)
    try:
        order.write(folder, engine_key(service.pk))
        close_old_connections()
        service.job_id = _LAUNCHERS[service.launcher].submit(order, folder)
    except LaunchError:
        service.delete()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    Service.objects.filter(pk=service.pk).update(job_id=service.job_id)
    logger.info("service submitted", extra={"action": "service_submit", "service": service.job_id, "model": model.name})
    return service


def cancel(service: Service, state: ServiceState = ServiceState.CANCELLED, why: str = "") -> None:
    """End a service; one that has ended already stays as it is. Raises LaunchError when it can't be reached."""
    if service.is_ended:
        return
    close_old_connections()
    _LAUNCHERS[service.launcher].stop(known(service))
    _end(service, state, why)


def _end(service: Service, state: ServiceState, why: str) -> None:
    changed = Service.objects.filter(pk=service.pk).exclude(state__in=ENDED_SERVICES)
    if changed.update(state=state, ended_at=timezone.now(), error=why, fed_by=None):
        extra = {"action": "service_end", "service": service.job_id, "state": str(state), "why": why}
        logger.info("service ended", extra=extra)
        if state == ServiceState.FAILED:
            counting.ended_badly(service.pk, had_started=service.ready_at is not None)
    service.refresh_from_db()
    # Its log stays to be read; the key of what has ended is of no use to anybody but a thief.
    (folder_of(service) / "key").unlink(missing_ok=True)


def fail_unsubmitted(before: datetime) -> None:
    """End services whose job was never handed in: their process died between the row and the job."""
    for service in launched().filter(job_id="", state=ServiceState.PENDING, created_at__lt=before):
        _end(service, ServiceState.FAILED, "It was never handed in.")


def sweep(now: datetime) -> None:
    """Delete the folders of services that ended long ago, and those that no service has."""
    root = settings.VBATCH_HOME / "services"
    names = {folder.name for folder in root.iterdir()} if root.is_dir() else set()
    kept = launched().filter(Q(ended_at=None) | Q(ended_at__gt=now - LOG_LIFE), name__in=names)
    for name in names.difference(kept.values_list("name", flat=True)):
        # A new service has its row before its folder.
        shutil.rmtree(root / name, ignore_errors=True)


def logs(service: Service) -> str:
    """Return the last lines of a service's log."""
    return tail(folder_of(service), LOG_LINES)


def touch(service_ids: Iterable[int]) -> None:
    """Note that there is work for services, so that they are not stopped as idle."""
    Service.objects.filter(pk__in=list(service_ids)).update(used_at=clock.now())


_PHASES = {
    Phase.WAITING: ServiceState.PENDING,
    Phase.BUILDING: ServiceState.BUILDING,
    Phase.COMPLETED: ServiceState.COMPLETED,
    Phase.FAILED: ServiceState.FAILED,
    Phase.CANCELLED: ServiceState.CANCELLED,
}


def note(service: Service, sight: Sight, context: int | None) -> None:
    """Write what was seen of a service; `context` is the length that its engine answered with, None without answer."""
    if sight.phase.is_end:
        _note_process(service, sight)
        _end(service, _PHASES[sight.phase], sight.why)
        if sight.phase is Phase.FAILED and service.ready_at is None:
            ServedModel.objects.filter(pk=service.model_id).update(load_error=sight.why, load_failed_at=clock.now())
        return
    found = {
        "state": _PHASES.get(sight.phase, ServiceState.STARTING),
        "error": sight.why,
        "misses": 0,
        "host": sight.host or service.host,
        "url": sight.url or service.url,
        "ends_at": sight.ends_at or service.ends_at,
        "pid": sight.pid or service.pid,
        "process_started": sight.process_started or service.process_started,
        "ready_at": service.ready_at,
    }
    if sight.phase is Phase.UP:
        if context is not None:
            found |= {"state": ServiceState.RUNNING, "ready_at": service.ready_at or clock.now()}
        elif service.state == ServiceState.RUNNING:
            lost = service.misses + 1 >= MISSES
            found |= {"misses": service.misses + 1} | (
                {"error": "It does not answer."} if lost else {"state": ServiceState.RUNNING}
            )
        elif service.ready_at is not None:
            found["error"] = "It does not answer."
    if any(getattr(service, name) != value for name, value in found.items()):
        Service.objects.filter(pk=service.pk).exclude(state__in=ENDED_SERVICES).update(**found)
    if service.ready_at is None and found["ready_at"] is not None:
        _note_ready(service, context)


def _note_ready(service: Service, context: int | None) -> None:
    seconds = (timezone.now() - service.created_at).total_seconds()
    logger.info("service ready", extra={"action": "service_ready", "service": service.job_id, "seconds": seconds})
    counting.started(service.pk, counting.LAUNCH, seconds)
    found = {"max_model_len": context} if context else {}
    ServedModel.objects.filter(pk=service.model_id).update(load_error="", load_failed_at=None, **found)
    demand.met(service.pk)


def _note_process(service: Service, sight: Sight) -> None:
    if service.launcher == Launchers.LOCAL:
        Service.objects.filter(pk=service.pk).update(pid=None, process_started=None)


# What runners ask.

WORKER_SILENCE = timedelta(seconds=10)  # after which a worker's service is free for another
LEAST_LIFE = timedelta(seconds=15)  # that a service must have left to be worth attaching to


@dataclass(frozen=True, slots=True)
class Fed:
    """A service that a worker feeds."""

    pk: int
    job_id: str
    model: str
    endpoints: list[str]
    url: str
    key: str
    ends_at: datetime | None
    folder: Path
    project_id: int | None


def _free(avoid: Collection[int]) -> "QuerySet[Service]":
    now = clock.now()
    nobody = Q(fed_by=None) | Q(fed_by__stopped_at__isnull=False) | Q(fed_by__seen_at__lt=now - WORKER_SILENCE)
    lasting = Q(ends_at=None) | Q(ends_at__gt=now + LEAST_LIFE)
    # A service of another host listens there on its loopback address.
    reached = Q(launcher=Launchers.SLURM) | Q(host=socket.gethostname())
    return launched().filter(nobody, lasting, reached, state=ServiceState.RUNNING).exclude(pk__in=avoid)


def free(avoid: Collection[int] = ()) -> set[tuple[str, int | None]]:
    """Return the models of running services that no worker feeds, each with its project, None for all projects."""
    return set(_free(avoid).values_list("model__name", "project_id"))


def attach(model: str, projects: Collection[int], holder: str, avoid: Collection[int] = ()) -> Fed | None:
    """Make a worker the one that feeds a free service of a model; None when there is none.

    The service is one of these projects' or of none.
    """
    registry.beat(holder)
    with transaction.atomic():
        rows = (
            _free(avoid)
            .filter(Q(project=None) | Q(project_id__in=projects), model__name=model)
            .select_related("model")
            .order_by(F("ends_at").desc(nulls_first=True))
        )
        row = rows.select_for_update(skip_locked=True, of=("self",)).first()
        if row is None:
            return None
        Service.objects.filter(pk=row.pk).update(fed_by_id=holder, used_at=clock.now())
    return Fed(
        row.pk,
        row.job_id,
        row.model.name,
        row.model.endpoints,
        row.url,
        engine_key(row.pk),
        row.ends_at,
        folder_of(row),
        row.project_id,
    )


def look(service_id: int, holder: str) -> Service | None:
    """Return a service that a worker still may feed, None when it is not there for it any more."""
    return Service.objects.filter(pk=service_id, fed_by_id=holder, state=ServiceState.RUNNING).first()


def detach(service_id: int, holder: str) -> None:
    """Let go of a service."""
    Service.objects.filter(pk=service_id, fed_by_id=holder).update(fed_by=None)


def is_wanted(model: str) -> bool:
    """Return whether a batch has open lines of a model."""
    return any(work.model == model and work.lines + work.held for work in leases.waiting())
