"""What Prometheus reads of workers and engines."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from django.db.models import Count, Q, Sum
from prometheus_client.core import GaugeMetricFamily, Metric, SummaryMetricFamily

from vbatch_site import clock
from vbatch_site.metrics import Scrape
from vbatch_site.readiness import Verdict
from workers.admission import QUIET_SECONDS
from workers.counting import DEATHS, FAILURES, SECONDS, STARTS
from workers.models import ENDED_SERVICES, LiveTraffic, ServedModel, Service, ServiceState, Worker

# A worker beats every two seconds, and a loaded machine may hold one up.
SILENT = timedelta(seconds=15)
_GONE = timedelta(hours=1)  # a worker that said nothing for so long is history

# These answer, or do as soon as they are woken.
_UP = [ServiceState.RUNNING, ServiceState.DRAINING, ServiceState.SLEEPING]


def of_workers(scrape: Scrape) -> Iterable[Metric]:
    """Return what this room knows."""
    yield _starts(scrape)
    yield scrape.counters("vbatch_engine_start_failures", "Engines that could not be started.", FAILURES, ["model"])
    yield scrape.counters("vbatch_engine_deaths", "Engines that ended without being asked to.", DEATHS, ["model"])
    yield _workers(clock.ask())
    yield _services()
    live = GaugeMetricFamily("vbatch_live_requests", "Live requests in flight.", labels=["model"])
    recent = LiveTraffic.objects.filter(seen_at__gt=scrape.now - timedelta(seconds=QUIET_SECONDS))
    for model, in_flight in recent.values_list("service__model__name").annotate(Sum("in_flight")).order_by():
        live.add_metric([model], in_flight)
    yield live


def _starts(scrape: Scrape) -> Metric:
    family = SummaryMetricFamily(
        "vbatch_engine_start_seconds",
        "What it took until an engine answered: loaded or woken by a worker, or launched as a service.",
        labels=["model", "kind"],
    )
    labels = ["model", "kind"]
    seconds = {counter[1:]: value for counter, value in scrape.totals.get(SECONDS, [])}
    for counter, value in scrape.totals.get(STARTS, []):
        family.add_metric(scrape.labels(counter, labels), int(value), seconds.get(counter[1:], 0.0))
    return family


def _workers(now: datetime) -> Metric:
    family = GaugeMetricFamily("vbatch_workers", "Workers of gpu clusters that have not stopped.", labels=["state"])
    beats = Q(seen_at__gt=now - SILENT)
    found = Worker.objects.filter(stopped_at=None, seen_at__gt=now - _GONE).aggregate(
        beating=Count("pk", filter=beats), silent=Count("pk", filter=~beats)
    )
    for state, count in found.items():
        family.add_metric([state], count)
    return family


def _services() -> Metric:
    family = GaugeMetricFamily("vbatch_services", "Engines that have not ended.", labels=["model", "state"])
    living = Service.objects.exclude(state__in=ENDED_SERVICES)
    for model, state, count in living.values_list("model__name", "state").annotate(Count("pk")).order_by():
        family.add_metric([model, state], count)
    return family


def gpu_cluster(now: datetime) -> Verdict:
    """Look whether a worker of a gpu cluster beats."""
    if Worker.objects.filter(stopped_at=None, seen_at__gt=clock.ask() - SILENT).exists():
        return Verdict.OK
    return Verdict.FAILED if Worker.objects.exists() else Verdict.UNKNOWN


def engine(now: datetime) -> Verdict:
    """Look whether an engine is up; without one, what became of the last start tells whether the next will work."""
    owned = Q(worker__stopped_at=None, worker__seen_at__gt=clock.ask() - SILENT) | Q(worker=None)
    if Service.objects.filter(owned, state__in=_UP).exists():
        return Verdict.OK
    known = ServedModel.objects.filter(enabled=True).aggregate(
        loaded=Count("pk", filter=Q(load_seconds__isnull=False, load_error="")),
        failed=Count("pk", filter=~Q(load_error="")),
    )
    if known["loaded"]:
        return Verdict.OK
    return Verdict.FAILED if known["failed"] else Verdict.UNKNOWN
