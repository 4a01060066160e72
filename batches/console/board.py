"""What this room adds to the dashboard."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db.models import Sum
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import mark_safe

from batches.console import pace
from batches.console.lists import narrowed
from batches.console.shown import decorate, description, event_tone, event_word
from batches.models import Batch, BatchEvent, Sample
from batches.progress import SAMPLE_SECONDS
from batches.samples import stretch
from batches.states import ACTIVE, BatchStatus
from vbatch_site.console import charts
from vbatch_site.console.registry import Tile

_HOUR = timedelta(hours=1)
_POINT_SECONDS = 60
_MODELS = 6
_ACTIVE_SHOWN = 8
_EVENTS = 10


def tiles() -> Iterable[Tile]:
    """Return the numbers of batches that matter now; each leads to the rows that the same question finds."""
    url = reverse("console:batches")
    running, queued, late, failed = (
        narrowed(name).order_by().count() for name in ("running", "queued", "expiring", "failed")
    )
    finalizing = Batch.objects.filter(status=BatchStatus.FINALIZING).count()
    yield Tile("running", running, f"{url}?only=running", "info" if running else "")
    yield Tile("queued", queued, f"{url}?only=queued")
    yield Tile("finalizing", finalizing, f"{url}?status=finalizing")
    yield Tile("failed in 24 h", failed, f"{url}?only=failed", "danger" if failed else "")
    yield Tile("expiring within 1 h", late, f"{url}?only=expiring", "warning" if late else "")


def throughput(request: HttpRequest) -> dict[str, Any]:
    """Return the last hour's rates of each model, one point a minute."""
    now = timezone.now()
    since = stretch(now - _HOUR)
    rows = (
        Sample.objects.filter(at__gte=since)
        .order_by()
        .values_list("model", "at")
        .annotate(lines=Sum("lines"), tokens=Sum("output_tokens"))
    )
    points = int(_HOUR.total_seconds()) // _POINT_SECONDS
    models: dict[str, tuple[list[float], list[float], list[int]]] = {}
    minute = now - timedelta(seconds=_POINT_SECONDS)
    for model, at, lines, tokens in rows:
        requests, output, total = models.setdefault(model, ([0.0] * points, [0.0] * points, [0, 0, 0, 0]))
        place = min(int((at - since).total_seconds()) // _POINT_SECONDS, points - 1)
        requests[place] += lines / _POINT_SECONDS
        output[place] += tokens / _POINT_SECONDS
        total[0] += lines
        total[1] += tokens
        if at >= minute:
            total[2] += lines
            total[3] += tokens
    found = []
    for model, (requests, output, total) in sorted(models.items(), key=lambda item: -item[1][2][0])[:_MODELS]:
        label = f"{model}: requests per second in the last hour, at most {charts.short(max(requests))}"
        tokens_label = f"{model}: output tokens per second in the last hour, at most {charts.short(max(output))}"
        found.append(
            {
                "model": model,
                "lines": total[0],
                "tokens": total[1],
                "requests_now": total[2] / _POINT_SECONDS,
                "tokens_now": total[3] / _POINT_SECONDS,
                "requests_svg": mark_safe(charts.sparkline(requests, label)),  # noqa: S308 (our own SVG)
                "tokens_svg": mark_safe(charts.sparkline(output, tokens_label)),  # noqa: S308 (our own SVG)
            }
        )
    return {"models": found, "resolution": SAMPLE_SECONDS}


def active(request: HttpRequest) -> dict[str, Any]:
    """Return the batches that run or wait, and the one that waits longest."""
    found = Batch.objects.filter(status__in=ACTIVE).select_related("project")
    rows = list(found.order_by("expires_at")[:_ACTIVE_SHOWN])
    pace.add(rows)
    oldest = Batch.objects.filter(status=BatchStatus.IN_PROGRESS, completed=0, failed=0).order_by("created_at").first()
    return {"batches": [decorate(batch) for batch in rows], "oldest": oldest}


def events(request: HttpRequest) -> dict[str, Any]:
    """Return the last lines of all journals."""
    rows = list(BatchEvent.objects.select_related("batch").order_by("-id")[:_EVENTS])
    for row in rows:
        shown: Any = row
        shown.word, shown.tone, shown.about = event_word(row), event_tone(row), description(row.batch)
    return {"events": rows}
