"""What Prometheus reads of batches, their queue and their webhooks."""

from collections.abc import Iterable
from datetime import datetime

from django.db import connection
from django.db.models import Count, Min
from prometheus_client.core import GaugeMetricFamily, Metric

from batches.counting import ATTEMPTS, DROPPED, LEASES_LOST, LINES, MOVES, RETRIES, SECONDS, TOKENS
from batches.states import BatchStatus
from batches.webhooks.models import OPEN, WebhookDelivery, WebhookEndpoint
from vbatch_site.metrics import Scrape


def of_batches(scrape: Scrape) -> Iterable[Metric]:
    """Return what this room knows."""
    yield from _counters(scrape)
    yield from _active(scrape)
    yield from _queue(scrape)
    yield from _webhooks(scrape.now)


def _counters(scrape: Scrape) -> Iterable[Metric]:
    both = ["project", "model"]
    states = [state.value for state in BatchStatus]
    yield scrape.counters("vbatch_batch_moves", "Batches that entered a state.", MOVES, ["project", "to"], states)
    yield scrape.counters(
        "vbatch_lines", "Lines that were run, by what came of them.", LINES, [*both, "result"], ["completed", "failed"]
    )
    kinds = ["input", "cached", "output", "reasoning"]
    yield scrape.counters("vbatch_tokens", "Tokens of completed lines.", TOKENS, [*both, "kind"], kinds)
    yield scrape.counters("vbatch_line_seconds", "Time that lines spent in the engine, summed.", SECONDS, both)
    yield scrape.counters("vbatch_line_retries", "Attempts at lines after the first.", RETRIES, both)
    yield scrape.counters("vbatch_leases_lost", "Shards taken over from a worker that fell silent.", LEASES_LOST, both)
    yield scrape.counters(
        "vbatch_lines_dropped", "Results not kept, because their worker's lease was lost.", DROPPED, both
    )
    results = ["delivered", "retrying", "exhausted"]
    text = "Attempts to deliver webhooks, by what became of the delivery."
    yield scrape.counters("vbatch_webhook_attempts", text, ATTEMPTS, ["project", "result"], results)


def _active(scrape: Scrape) -> Iterable[Metric]:
    """Return the batches that have not ended; those that have are counted as moves."""
    batches = GaugeMetricFamily(
        "vbatch_batches", "Batches that have not ended, by state, or paused.", labels=["project", "status"]
    )
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT project_id, CASE WHEN paused_at IS NULL THEN status ELSE 'paused' END AS shown, count(*)
              FROM batches_batch WHERE status IN ('cancelling', 'finalizing', 'in_progress', 'validating')
             GROUP BY 1, 2 ORDER BY 1, 2
            """
        )
        for project_id, status, count in cursor.fetchall():
            batches.add_metric([scrape.project(project_id), status], count)
    yield batches


def _queue(scrape: Scrape) -> Iterable[Metric]:
    labels = ["project", "model"]
    lines = GaugeMetricFamily(
        "vbatch_queue_lines", "Lines without a result, in a worker's hands or waiting.", labels=[*labels, "state"]
    )
    oldest = GaugeMetricFamily(
        "vbatch_queue_oldest_seconds", "Age of the oldest batch that no worker has lines of.", labels=labels
    )
    deadline = GaugeMetricFamily(
        "vbatch_queue_deadline_seconds", "Time until the next completion window with open lines ends.", labels=labels
    )
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT project_id, model, sum(waiting), sum(running), min(created_at) FILTER (WHERE running = 0),
                   min(expires_at)
              FROM (SELECT b.project_id, s.model, b.created_at, b.expires_at,
                           coalesce(sum(s.count - s.done) FILTER (WHERE s.lease_expires_at >= now()), 0) AS running,
                           coalesce(sum(s.count - s.done)
                                    FILTER (WHERE coalesce(s.lease_expires_at < now(), true)), 0) AS waiting
                      FROM batches_shard s JOIN batches_batch b ON b.id = s.batch_id
                     WHERE b.status = 'in_progress' AND b.paused_at IS NULL AND s.state IN ('pending', 'leased')
                     GROUP BY b.id, s.model) AS work
             GROUP BY project_id, model ORDER BY project_id, model
            """
        )
        for project_id, model, waiting, running, since, until in cursor.fetchall():
            names = [scrape.project(project_id), model]
            lines.add_metric([*names, "waiting"], int(waiting))
            lines.add_metric([*names, "running"], int(running))
            oldest.add_metric(names, (scrape.now - since).total_seconds() if since else 0)
            deadline.add_metric(names, (until - scrape.now).total_seconds())
    yield from (lines, oldest, deadline)


def _webhooks(now: datetime) -> Iterable[Metric]:
    waiting = WebhookDelivery.objects.filter(state__in=OPEN).aggregate(count=Count("pk"), since=Min("created_at"))
    age = (now - waiting["since"]).total_seconds() if waiting["since"] else 0.0
    disabled = WebhookEndpoint.objects.listed().filter(disabled_at__isnull=False).count()
    yield GaugeMetricFamily("vbatch_webhook_deliveries", "Deliveries on their way.", value=waiting["count"])
    yield GaugeMetricFamily("vbatch_webhook_oldest_seconds", "Age of the oldest of them.", value=age)
    yield GaugeMetricFamily("vbatch_webhook_endpoints_disabled", "Endpoints that took nothing.", value=disabled)
