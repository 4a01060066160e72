"""How fast batches go: what their samples say, for a list of them and for one batch's plot."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone
from django.utils.safestring import SafeString, mark_safe

from batches import standing
from batches.models import Batch, BatchEvent
from batches.progress import SAMPLE_SECONDS, Span
from batches.states import BatchStatus, EventKind
from vbatch_site.console import charts

_POINTS = 120  # of a plot; more can't be told apart
_FEWEST_POINTS = 3  # fewer make no shape

_MARKED = {EventKind.PAUSE: "paused", EventKind.RESUME: "resumed", EventKind.RETRY: "retried"}


def add(batches: Sequence[Batch]) -> None:
    """Add rate, place in the queue and the time left to batches, with as many queries for many as for one."""
    now = timezone.now()
    found = standing.standings(batches, now)
    for batch in batches:
        shown: Any = batch
        stands = found[batch.pk]
        running = batch.status == BatchStatus.IN_PROGRESS
        shown.rate = stands.rates.last_minute if stands.rates and running else None
        shown.mean_rate = stands.rates.since_start if stands.rates else None
        shown.position = stands.position
        shown.facts = stands.provenance
        shown.eta = _left(stands.eta, now.timestamp()) if stands.eta else ""
        shown.collecting = running and not shown.eta and batch.paused_at is None


def _left(eta: Span, now: float) -> str:
    """Return the time that is left as a range, in one unit where both ends share it."""
    first, last = (charts.roughly(max(at - now, 1), eta.latest - now).split() for at in eta)
    if first[1:] == last[1:] and len(first) == 2:
        return f"{first[0]} to {last[0]} {last[1]}" if first[0] != last[0] else f"about {last[0]} {last[1]}"
    return f"{' '.join(first)} to {' '.join(last)}"


def _buckets(start: datetime, end: datetime, rows: Iterable[tuple[datetime, int, int]]) -> tuple[int, list[Any]]:
    """Return the length of a stretch in seconds, and (time, lines/s, tokens/s) of each without gaps."""
    span = max((end - start).total_seconds(), SAMPLE_SECONDS)
    length = SAMPLE_SECONDS * max(1, round(span / SAMPLE_SECONDS / _POINTS + 0.5))
    first = int(start.timestamp()) // length * length
    sums: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for at, lines, tokens in rows:
        into = sums[int(at.timestamp()) // length * length]
        into[0] += lines
        into[1] += tokens
    # The last stretch is not over yet: it would show a fall that is none.
    last = max(int(end.timestamp()) // length * length, first + length)
    return length, [(at, sums[at][0] / length, sums[at][1] / length) for at in range(first, last, length)]


def plots(batch: Batch, events: Sequence[BatchEvent]) -> list[dict[str, SafeString | str]]:
    """Return the throughput of a batch as two plots, requests and output tokens a second."""
    if batch.in_progress_at is None:
        return []
    samples = batch.samples.values_list("at", "lines", "output_tokens").order_by("at")
    rows = list(samples)
    if not rows:
        return []
    # What was retried later is part of the story, the idle time after it is not.
    active = batch.status == BatchStatus.IN_PROGRESS
    end = timezone.now() if active else rows[-1][0] + timedelta(seconds=SAMPLE_SECONDS)
    length, series = _buckets(batch.in_progress_at, end, rows)
    if len(series) < _FEWEST_POINTS:
        return []
    # A point stands in the middle of its stretch.
    marks = [charts.Mark(e.at.timestamp(), _MARKED[EventKind(e.kind)]) for e in events if e.kind in _MARKED]
    start_at, end_at = series[0][0], series[-1][0] + length
    ticks = charts.clock_ticks(start_at, end_at) if active else _elapsed(start_at, end_at)
    found: list[dict[str, SafeString | str]] = []
    for index, name in ((1, "Requests"), (2, "Output tokens")):
        values = [(point[0] + length / 2, point[index]) for point in series]
        best = max(value for _, value in values)
        svg = charts.throughput(
            values,
            start=start_at,
            end=end_at,
            label=f"{name} per second over time, at most {charts.short(best)}",
            unit=f"{name.lower()} per second",
            marks=marks,
            ticks=ticks,
        )
        title = f"{name} per second, mean of {charts.duration(length)}"
        found.append({"title": title, "svg": mark_safe(svg), "best": charts.short(best)})  # noqa: S308 (our own SVG)
    return found


def _elapsed(start: float, end: float, count: int = 4) -> list[tuple[float, str]]:
    span = end - start
    return [(start + span * i / count, charts.duration(span * i / count)) for i in range(count + 1)]
