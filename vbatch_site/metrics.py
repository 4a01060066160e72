"""What Prometheus reads at /metrics.

Everything is read from the database when it is asked for, so that any of several web processes, on any host, gives the
whole answer, and a restart resets nothing. Rooms add what they know when their app starts. Labels are projects,
catalogue models, states and routes; nothing that a request may choose.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from secrets import compare_digest

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from vbatch_site import __version__, observed, tally
from vbatch_site.models import Project


@dataclass(frozen=True, slots=True)
class Scrape:
    """What the rooms are given for one answer."""

    now: datetime
    projects: dict[int, str]  # names by id
    totals: dict[str, list[tuple[tally.Counter, float]]]

    def project(self, project_id: int) -> str:
        """Return a project's name; empty for none and for one that has been deleted."""
        return self.projects.get(project_id, "")

    def counters(
        self, name: str, text: str, kept_as: str, labels: Sequence[str], known: Iterable[str] = ()
    ) -> CounterMetricFamily:
        """Return a family of counters with these labels: `project` and `model`, and what is left from their label.

        Where one of the `known` values of the label is not there yet, it is 0: Prometheus does not see a counter rise
        that begins at 1.
        """
        family = CounterMetricFamily(name, text, labels=labels)
        found = dict(self.totals.get(kept_as, []))
        for counter in list(found):
            for value in known:
                found.setdefault(counter._replace(label=value), 0.0)
        for counter, total in found.items():
            family.add_metric(self.labels(counter, labels), total)
        return family

    def labels(self, counter: tally.Counter, labels: Sequence[str]) -> list[str]:
        """Return a counter's values of these labels."""
        rest = iter(counter.label.split(" "))
        known = {"project": lambda: self.project(counter.project_id), "model": lambda: counter.model}
        return [known[name]() if name in known else next(rest) for name in labels]


Provider = Callable[[Scrape], Iterable[Metric]]
_providers: list[Provider] = []


def add(provider: Provider) -> None:
    """Add a room's metrics; its number of queries must not depend on how many rows there are."""
    _providers.append(provider)


def of_site(scrape: Scrape) -> Iterable[Metric]:
    """Return what this room knows: the build, HTTP, the task queues, the database."""
    facts = {"version": __version__, "engine": settings.VBATCH_ENGINE, "launcher": settings.VBATCH_LAUNCHER}
    yield InfoMetricFamily("vbatch_build", "What runs here.", value=facts)
    labels = ["method", "route", "status"]
    yield scrape.counters("vbatch_http_requests", "Answered requests.", observed.REQUESTS, labels)
    yield _http_seconds(scrape)
    yield from _tasks(scrape)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        size = cursor.fetchone()[0]
    yield GaugeMetricFamily("vbatch_database_bytes", "The database's size on disk.", value=size)


def _http_seconds(scrape: Scrape) -> Metric:
    family = HistogramMetricFamily(
        "vbatch_http_request_seconds",
        "Time to the head of the answer; the body of an upload is read before it.",
        labels=["method", "route"],
    )
    sums = {counter.label: value for counter, value in scrape.totals.get(observed.SECONDS, [])}
    buckets: dict[str, dict[str, float]] = {}
    for counter, value in scrape.totals.get(observed.BUCKETS, []):
        method, route, bound = counter.label.split(" ")
        buckets.setdefault(f"{method} {route}", {})[bound] = value
    for label, found in sorted(buckets.items()):
        total, cumulative = 0.0, []
        for bound in observed.BOUNDS:
            total += found.get(bound, 0.0)
            cumulative.append((bound, total))
        family.add_metric(label.split(" "), cumulative, sums.get(label, 0.0))
    return family


def _tasks(scrape: Scrape) -> Iterable[Metric]:
    count = GaugeMetricFamily("vbatch_tasks", "Doorbells in django-q2's queues.", labels=["queue", "state"])
    oldest = GaugeMetricFamily("vbatch_task_oldest_seconds", "Age of the oldest that waits.", labels=["queue"])
    with connection.cursor() as cursor:
        # A task's lock is when it was queued; for one that was taken, when it may be taken again.
        cursor.execute(
            "SELECT key, count(*) FILTER (WHERE lock <= %(now)s), count(*) FILTER (WHERE lock > %(now)s),"
            " extract(epoch FROM %(now)s - min(lock) FILTER (WHERE lock <= %(now)s))"
            " FROM django_q_ormq WHERE key IN ('default', 'gpu') GROUP BY key",
            {"now": scrape.now},
        )
        rows = {row[0]: row[1:] for row in cursor.fetchall()}
    for queue in ("default", "gpu"):
        waiting, taken, age = rows.get(queue, (0, 0, None))
        count.add_metric([queue, "waiting"], waiting)
        count.add_metric([queue, "taken"], taken)
        oldest.add_metric([queue], float(age or 0))
    yield count
    yield oldest


class _Collector:
    """All rooms' metrics of one moment."""

    def collect(self) -> Iterable[Metric]:
        """Return them; one snapshot of the database, so that they fit together."""
        with transaction.atomic():
            with connection.cursor() as cursor:
                # Ignored where a transaction runs already, as in tests.
                if not connection.savepoint_ids:
                    cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            projects = dict(Project.objects.values_list("pk", "name"))
            scrape = Scrape(timezone.now(), projects, tally.totals())
            return [metric for provider in _providers for metric in provider(scrape)]


def may_scrape(request: HttpRequest) -> bool:
    """Return whether a request has the scraper's token; a trusted network needs none."""
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    wanted: str = settings.VBATCH_METRICS_TOKEN
    given = scheme.lower() == "bearer" and compare_digest(text.strip().encode(), wanted.encode())
    return settings.VBATCH_AUTH == "optional" or given


@require_safe
def metrics(request: HttpRequest) -> HttpResponse:
    """Answer with every metric, in the form that the scraper asks for."""
    if not may_scrape(request):
        text = "Send the token in VBATCH_HOME/metrics_token, or VBATCH_METRICS_TOKEN, as a bearer token.\n"
        headers = {"www-authenticate": 'Bearer realm="vbatch metrics"'}
        return HttpResponse(text, status=401, content_type="text/plain", headers=headers)
    registry = CollectorRegistry(auto_describe=False)
    try:
        observed.flush()
        registry.register(_Collector())
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        return HttpResponse(encode(registry), content_type=kind)
    except DatabaseError:
        return HttpResponse("The database can't be reached.\n", status=503, content_type="text/plain")
