"""Start and stop services for waiting batches, as `autoscale` decides."""

import logging
from collections import defaultdict
from datetime import datetime, timedelta

from django.conf import settings

from batches import leases
from batches.demand import Waiting
from vbatch_site import clock
from workers import autoscale, demand, recipes, services, traffic
from workers.launchers import LaunchError
from workers.models import ENDED_SERVICES, Launcher, ServedModel, Service, ServiceState
from workers.recipes import RecipeError

logger = logging.getLogger(__name__)

ATTEMPTS = 2  # services of a model that may fail to start before the batches that wait for it are ended


def step() -> None:
    """Bring services and demand together once."""
    now = clock.ask()
    waiting = _give_up([work for work in leases.waiting() if work.lines + work.held], now)
    live = demand.wanted(now)
    rows = list(
        Service.objects.filter(launcher=Launcher.SLURM).exclude(state__in=ENDED_SERVICES).select_related("model")
    )
    # Whoever runs a service of their own uses that.
    own = {(row.model.name, row.project_id) for row in rows}
    demands = _demands([work for work in waiting if (work.model, work.project_id) not in own], live)
    services.touch([row.pk for row in rows if _is_used(row, {work.model for work in waiting})])
    running = [
        autoscale.Running(
            id=row.pk,
            model=row.model.name,
            since=row.ready_at or row.created_at,
            used_at=row.used_at,
            ends_at=row.ends_at,
        )
        for row in rows
        if row.project_id is None
    ]
    plan = autoscale.plan(demands, running, limits(), now)
    by_id = {row.pk: row for row in rows}
    for service_id in plan.stops:
        try:
            services.cancel(by_id[service_id], ServiceState.COMPLETED, "There was no work for it.")
        except LaunchError as error:
            logger.warning("idle service not stopped: %s", error, extra={"action": "scale_failed"})
    for model in plan.starts:
        _start(model, waiting)


def limits() -> autoscale.Limits:
    """Return what the operator set."""
    return autoscale.Limits(
        least=settings.VBATCH_SLURM_MIN,
        most=settings.VBATCH_SLURM_MAX,
        idle=timedelta(seconds=settings.VBATCH_SLURM_IDLE),
        lines=settings.VBATCH_SLURM_LINES,
    )


def _demands(waiting: list[Waiting], live: dict[str, datetime]) -> list[autoscale.Demand]:
    lines: dict[str, int] = defaultdict(int)
    since = dict(live)
    for model in live:
        lines[model] += 1
    for work in waiting:
        lines[work.model] += work.lines + work.held
        since[work.model] = min(since.get(work.model, work.created_at), work.created_at)
    return [autoscale.Demand(model=model, lines=count, since=since[model]) for model, count in lines.items()]


def _is_used(row: Service, wanted: set[str]) -> bool:
    """Return whether a service has work: lines from a worker, or live requests."""
    return (row.fed_by_id is not None and row.model.name in wanted) or traffic.is_used(row.pk)


def _give_up(waiting: list[Waiting], now: datetime) -> list[Waiting]:
    """End batches whose model can't be started; return the others."""
    known = set(ServedModel.objects.filter(enabled=True).values_list("name", flat=True))
    left: list[Waiting] = []
    for work in waiting:
        why = _why_not(work) if work.model in known else "The model was removed from the catalogue."
        if why is None:
            left.append(work)
        else:
            leases.abort_model(work.batch_id, work.model, "model_load_failed", why)
    return left


def _why_not(work: Waiting) -> str | None:
    """Return why no service can be started for a batch, None when one may be."""
    tried = Service.objects.filter(
        launcher=Launcher.SLURM, project=None, model__name=work.model, created_at__gte=work.created_at
    )
    last = list(tried.order_by("-created_at").values_list("state", "ready_at", "error")[:ATTEMPTS])
    if len(last) == ATTEMPTS and all(state == ServiceState.FAILED and ready is None for state, ready, _ in last):
        return f"No service could be started: {last[0][2]}"
    return None


def _start(model: str, waiting: list[Waiting]) -> None:
    recipe = recipes.find(settings.VBATCH_SLURM_RECIPE)
    try:
        if recipe is None:
            raise RecipeError(f"There is no recipe {settings.VBATCH_SLURM_RECIPE}.", "VBATCH_SLURM_RECIPE", "unknown")
        config = {**settings.VBATCH_SLURM_CONFIG}
        config["environment"] = {**config.get("environment", {}), "VLLM_MODEL": model}
        services.create(None, recipe, recipe.resolve(config))
    except (RecipeError, LaunchError) as error:
        logger.warning("no service for a batch: %s", error, extra={"action": "scale_failed", "model": model})
        if isinstance(error, LaunchError) and not error.is_request:
            return  # SLURM is away; the next look tries again
        for work in waiting:
            if work.model == model:
                leases.abort_model(work.batch_id, model, "model_load_failed", f"No service could be started: {error}")
