"""Workers and GPUs: who lives, what is loaded, what runs."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Count, Sum
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from batches.models import Batch, Sample, Shard
from batches.samples import stretch
from batches.states import ShardState
from vbatch_site import audit, clock
from vbatch_site.console.pages import DASHBOARD_SECONDS, back, page, say, show
from vbatch_site.console.registry import Component, Notice
from vbatch_site.console.roles import Right, may
from workers import catalogue, gpus
from workers.console.telling import load_refusal, unload_refusal, worker_actions
from workers.models import ENDED_SERVICES, ServedModel, Service, ServiceState, Wanted, Worker

# A worker beats every two seconds; three misses are a busy machine, more are silence.
_SILENT_SECONDS = 8
# A worker that said nothing for this long is history.
_GONE = timedelta(minutes=10)
_WORKERS_SHOWN = 100
_LOG_BYTES = 16 << 10
_RECENT = 20

_SERVICE_TONES = {
    ServiceState.RUNNING: "success",
    ServiceState.SLEEPING: "none",
    ServiceState.COMPLETED: "none",
    ServiceState.CANCELLED: "none",
    ServiceState.FAILED: "danger",
}


def service_tone(state: str) -> str:
    """Return the colour of a service's state."""
    return _SERVICE_TONES.get(ServiceState(state), "info")


def _state(worker: Worker, engine: Service | None, works: bool, now: datetime) -> tuple[str, str]:
    """Return what a worker does, as far as the database knows, and a colour."""
    if worker.stopped_at is not None:
        return "stopped", "none"
    silent = (now - worker.seen_at).total_seconds()
    if silent > _SILENT_SECONDS:
        return ("gone", "none") if silent > _GONE.total_seconds() else ("silent", "danger")
    if worker.wanted == Wanted.UNLOAD:
        return "unloading", "info"
    if worker.wanted == Wanted.DRAIN:
        return ("draining", "info") if works else ("drained", "warning")
    if worker.wanted == Wanted.STOP:
        return ("stopping", "info") if works or engine is not None else ("off", "warning")
    if engine is not None and engine.state in (ServiceState.STARTING, ServiceState.BUILDING, ServiceState.PENDING):
        return "loading", "info"
    if works:
        return "busy", "success"
    return ("ready", "success") if engine is not None else ("idle", "none")


def living(limit: int = _WORKERS_SHOWN) -> list[Worker]:
    """Return workers heard of lately, each with its engine and the batch that it runs."""
    # By the clock that they beat by, and without a question of its own.
    rows: list[Any] = list(
        Worker.objects.filter(seen_at__gte=Now() - _GONE).annotate(read_at=Now()).order_by("host", "id")[:limit]
    )
    return _with_work(rows, rows[0].read_at if rows else timezone.now())


def _with_work(rows: list[Worker], now: datetime) -> list[Worker]:
    ids = [row.pk for row in rows]
    engines: dict[str, Service] = {}
    live = Service.objects.filter(worker__in=ids).exclude(state__in=ENDED_SERVICES)
    for service in live.select_related("model", "provenance"):
        # Of the engines that a worker has, one is awake.
        if service.worker_id not in engines or service.state != ServiceState.SLEEPING:
            engines[str(service.worker_id)] = service
    held: dict[str, list[str]] = {}
    leases = Shard.objects.filter(state=ShardState.LEASED, holder__in=ids, lease_expires_at__gt=Now())
    for holder, batch_id in leases.order_by().values_list("holder", "batch_id").distinct():
        held.setdefault(holder, []).append(batch_id)
    batches = Batch.objects.only("total", "completed", "failed").in_bulk(
        {pk for found in held.values() for pk in found}
    )
    faults = Service.objects.filter(worker__in=ids, state=ServiceState.FAILED).order_by("worker", "-created_at")
    errors = dict(faults.distinct("worker").values_list("worker", "error"))
    for worker in rows:
        shown: Any = worker
        shown.engine = engines.get(worker.pk)
        shown.version = _version(shown.engine)
        shown.batches = [batches[pk] for pk in sorted(held.get(worker.pk, [])) if pk in batches]
        shown.error = errors.get(worker.pk, "")
        shown.word, shown.tone = _state(worker, shown.engine, bool(shown.batches), now)
        shown.alive = shown.word not in ("stopped", "gone", "silent")
    return rows


def _version(engine: Service | None) -> str:
    facts = engine.provenance.facts if engine and engine.provenance else {}
    return f"{facts.get('engine', '')} {facts.get('engine_version') or ''}".strip()


def strip(request: HttpRequest) -> dict[str, Any]:
    """Return the dashboard's workers."""
    rows = living()
    idle = sum(row.wanted != Wanted.WORK for row in rows if _is_alive(row))
    return {"workers": rows, "alive": sum(_is_alive(row) for row in rows), "drained": idle}


def graphics(request: HttpRequest) -> dict[str, Any]:
    """Return the dashboard's GPUs."""
    return {"gpus": gpus.look()}


def _is_alive(worker: Any) -> bool:
    return bool(worker.alive)


def warnings() -> Iterable[Notice]:
    """Say that nobody works, and which models do not load."""
    rows = living()
    url = reverse("console:workers")
    if not any(_is_alive(row) for row in rows):
        yield Notice("No worker is alive: nothing runs.", url, "danger")
    elif all(row.wanted in (Wanted.DRAIN, Wanted.STOP) for row in rows if _is_alive(row)):
        yield Notice("Every worker is drained or off: nothing new runs.", url)
    silent = sum(row.word == "silent" for row in rows)  # type: ignore[attr-defined]
    if silent:
        yield Notice("A worker is silent." if silent == 1 else f"{silent} workers are silent.", url)
    for model in ServedModel.objects.filter(enabled=True).exclude(load_error="")[:3]:
        yield Notice(f"{model.name} did not load: {model.load_error[:160]}", reverse("console:models"))


def components() -> Iterable[Component]:
    """Return the lines of the system page that this room knows."""
    rows = living()
    alive = sum(_is_alive(row) for row in rows)
    detail = f"{alive} of {len(rows)} alive" if rows else "none was heard of lately"
    yield Component("GPU workers", "up" if alive else "down", detail, reverse("console:workers"))
    found = gpus.look()
    if found is None:
        yield Component("GPUs", "unknown", "nvidia-smi does not answer on this host", reverse("console:workers"))
    else:
        yield Component("GPUs", "up" if found else "unknown", f"{len(found)} on this host", reverse("console:workers"))


@page()
def workers(request: HttpRequest) -> HttpResponse:
    """Show workers, GPUs and engines."""
    rows: Any = living()
    for row in rows:
        row.actions = worker_actions(row, request.user)
    context = {
        "title": "Workers and GPUs",
        "workers": rows,
        "gpus": gpus.look(),
        "engines": [
            _toned(row) for row in Service.objects.select_related("model", "worker").order_by("-created_at")[:_RECENT]
        ],
        "seconds": DASHBOARD_SECONDS,
    }
    return show(request, "console/workers/workers.html", context, part="console/workers/_workers.html")


def _toned(service: Service) -> Service:
    shown: Any = service
    shown.tone = service_tone(service.state)
    end = service.ready_at or service.ended_at or timezone.now()
    shown.load_seconds = (end - service.created_at).total_seconds()
    return service


@page()
def worker(request: HttpRequest, worker_id: str) -> HttpResponse:
    """Show one worker: its engines, and the end of its engine's log to those who may see prompts."""
    found: Any = get_object_or_404(Worker.objects.select_related("load"), pk=worker_id)
    _with_work([found], clock.ask())
    sees = may(request.user, Right.PROMPTS)
    context = {
        "title": found.pk,
        "worker": found,
        "actions": worker_actions(found, request.user),
        "leases": Shard.objects.filter(holder=found.pk).defer("lines").order_by("-pk")[:_RECENT],
        "engines": [_toned(row) for row in found.services.select_related("model")[:_RECENT]],
        "log": _log_tail(found.pk) if sees else None,
        "sees": sees,
    }
    return show(request, "console/workers/worker.html", context)


def _log_tail(worker_id: str) -> str | None:
    """Return the end of a worker's engine log, None when it is on another host or there is none."""
    path = settings.VBATCH_HOME / "logs" / f"engine-{worker_id}.log"
    try:
        # The name comes from our own row, and still never leaves the folder.
        if path.resolve().parent != (settings.VBATCH_HOME / "logs").resolve():
            return None
        with path.open("rb") as stream:
            stream.seek(max(path.stat().st_size - _LOG_BYTES, 0))
            return stream.read().decode("utf-8", "replace")
    except OSError:
        return None


@page()
def models(request: HttpRequest) -> HttpResponse:
    """List the catalogue with what each model did in a day."""
    now = timezone.now()
    rows = list(ServedModel.objects.order_by("-enabled", "name"))
    loaded: dict[int, list[Service]] = {}
    for service in Service.objects.exclude(state__in=ENDED_SERVICES).select_related("worker"):
        loaded.setdefault(service.model_id, []).append(service)
    day = dict(
        Sample.objects.filter(at__gte=stretch(now - timedelta(days=1)))
        .order_by()
        .values_list("model")
        .annotate(n=Sum("lines"))
    )
    open_shards = Shard.objects.filter(state__in=[ShardState.PENDING, ShardState.LEASED]).order_by()
    waiting = {
        name: (count or 0) - (done or 0)
        for name, count, done in open_shards.values_list("model").annotate(c=Sum("count"), d=Sum("done"))
    }
    takers: Any = [w for w in living() if w.alive and w.wanted == Wanted.WORK]  # type: ignore[attr-defined]
    for row in rows:
        shown: Any = row
        shown.loaded = loaded.get(row.pk, [])
        shown.day = day.get(row.name, 0)
        shown.waiting = waiting.get(row.name, 0)
        shown.quantization = catalogue.quantization(row)
        has_it = {service.worker_id for service in shown.loaded}
        shown.takers = [taker for taker in takers if taker.pk not in has_it]
        shown.load_refusal = load_refusal(row, len(shown.takers))
        shown.unload_refusal = unload_refusal(shown.waiting)
    counts = dict(ServedModel.objects.order_by().values_list("enabled").annotate(n=Count("pk")))
    context = {"title": "Models", "models": rows, "enabled": counts.get(True, 0)}
    return show(request, "console/workers/models.html", context)


@page(Right.ADMINISTER, methods=("POST",))
def switch(request: HttpRequest, pk: int) -> HttpResponse:
    """Enable or disable a model."""
    found = get_object_or_404(ServedModel, pk=pk)
    enabled = request.POST.get("enabled") == "1"
    with transaction.atomic():
        ServedModel.objects.filter(pk=pk).update(enabled=enabled)
        audit.note_change()
    say(request, f"{found.name} is {'enabled' if enabled else 'disabled'}.")
    return back(request, reverse("console:models"))
