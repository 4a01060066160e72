"""How batches stand: their place in the queue, their rates, and when they will be done.

A list of batches costs as many queries as one; batches that have ended cost none but for their provenance.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import connection

from batches import progress, samples
from batches.models import Batch
from batches.progress import Costs, Rates, Span
from batches.states import STEERABLE, TERMINAL, BatchStatus, timestamp_field

_LEARN_FROM = timedelta(hours=1)  # what a model did before says little about what it does now
_BYTES_PER_TOKEN = 4  # of a line of input, its JSON included; a rough count will do for a range


@dataclass(frozen=True, slots=True)
class Standing:
    """How one batch stands."""

    position: int | None = None  # 0: its lines are being run; None: it is in no queue
    eta: Span | None = None  # unix seconds
    rates: Rates | None = None
    provenance: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Queued:
    """A batch that has lines to run."""

    batch_id: str
    project_id: int
    model: str | None
    priority: int
    lines: int  # that have no result yet
    total: int
    running: bool  # a worker has lines of it
    input_bytes: int


def queue(now: datetime) -> list[Queued]:
    """Return the batches that run or wait, of all projects: those that run first, then in the order of their turns."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT b.id, b.project_id, b.model, b.priority, b.total - b.completed - b.failed, b.total,
                   EXISTS (SELECT 1 FROM batches_shard s
                            WHERE s.batch_id = b.id AND s.state = 'leased' AND s.lease_expires_at > now()) AS running,
                   coalesce(f.bytes, 0)
              FROM batches_batch b LEFT JOIN files_file f ON f.id = b.input_file_id
             WHERE b.status = 'in_progress' AND b.paused_at IS NULL AND b.expires_at > %(now)s
             ORDER BY running DESC, b.priority DESC, b.created_at, b.id
            """,
            {"now": now},
        )
        return [Queued(*row) for row in cursor.fetchall()]


def positions(queued: Sequence[Queued]) -> dict[str, int]:
    """Return each batch's place: 0 for those that run, from 1 for those that wait."""
    waiting = [batch.batch_id for batch in queued if not batch.running]
    return {batch.batch_id: 0 for batch in queued} | {batch_id: place for place, batch_id in enumerate(waiting, 1)}


def standings(batches: Sequence[Batch], now: datetime) -> dict[str, Standing]:
    """Return how these batches stand."""
    provenance = _provenance(batches)
    open_batches = {batch.pk: batch for batch in batches if batch.status not in TERMINAL}
    queued = queue(now) if open_batches else []
    places = positions(queued)
    ends = _ends(open_batches, queued, now) if open_batches else {}
    recent = samples.of_batches(open_batches, now - timedelta(seconds=progress.LAST_MINUTE + progress.SAMPLE_SECONDS))
    return {
        batch.pk: Standing(
            position=places.get(batch.pk),
            eta=ends.get(batch.pk),
            rates=_rates(batch, recent.get(batch.pk, []), now),
            provenance=provenance[batch.pk],
        )
        for batch in batches
    }


@dataclass(frozen=True, slots=True)
class Work:
    """Lines of one model that are in no queue yet."""

    lines: int
    prompt_tokens: float | None  # that have to be computed
    most_output_tokens: int | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What work would take if it were queued now."""

    output_tokens: int
    seconds: float  # of the engine, for this work alone
    span: Span  # seconds from now until it is done


def forecast(work: Mapping[str, Work], now: datetime) -> Forecast | None:
    """Return what work, given by model, would take by what its models did lately; None when that is too little."""
    done = samples.of_models(work, now - _LEARN_FROM)
    learned = {model: progress.costs(done.get(model, [])) for model in work}
    own = output = 0.0
    for model, asked in work.items():
        costs = learned[model]
        if costs is None:
            return None
        own += costs.seconds(asked.lines, asked.prompt_tokens)
        # Costs have the mean answer only of a model that was busy for long.
        seen = done[model]
        generated = asked.lines * sum(sample.decoded for sample in seen) / sum(sample.lines for sample in seen)
        output += generated if asked.most_output_tokens is None else min(generated, asked.most_output_tokens)
    ahead = [(row, costs) for row in queue(now) if (costs := learned.get(row.model or ""))]
    return Forecast(round(output), own, progress.wait(own, sum(_seconds(row, costs) for row, costs in ahead)))


def _provenance(batches: Sequence[Batch]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    links = Batch.provenance.through.objects.filter(batch_id__in=[batch.pk for batch in batches])
    for batch_id, facts in links.order_by("id").values_list("batch_id", "provenance__facts"):
        found[batch_id].append(facts)
    return found


def _rates(batch: Batch, recent: Sequence[progress.Sample], now: datetime) -> Rates | None:
    if batch.in_progress_at is None:
        return None
    end = now
    if batch.status in TERMINAL:
        end = batch.finalizing_at or batch.cancelling_at or getattr(batch, timestamp_field(BatchStatus(batch.status)))
    started, done = batch.in_progress_at.timestamp(), batch.completed + batch.failed - batch.carried
    if started > end.timestamp():
        # The clock was set back since: what was done after that is all that has a time.
        past = [sample for sample in recent if sample.at <= end.timestamp()]
        started, done = past[0].at if past else end.timestamp(), sum(sample.lines for sample in past)
    found = progress.rates(recent, started, end.timestamp(), max(done, 0))
    return Rates(0.0, found.since_start) if batch.status in TERMINAL else found


def _ends(batches: dict[str, Batch], queued: Sequence[Queued], now: datetime) -> dict[str, Span]:
    """Return when these batches will be done; those that say too little yet are left out."""
    seconds = now.timestamp()
    window = timedelta(seconds=progress.WINDOW_SECONDS)
    wanted = [row for row in queued if row.batch_id in batches and batches[row.batch_id].status in STEERABLE]
    own = samples.of_batches([row.batch_id for row in wanted], now - window)
    spans: dict[str, Span] = {}
    learned: dict[str, Costs | None] | None = None
    for row in wanted:
        batch = batches[row.batch_id]
        started = (batch.in_progress_at or now).timestamp()
        if own[row.batch_id]:
            # What came before a pause or a long wait, or before the clock was set back, says nothing about the pace.
            first = own[row.batch_id][0].at
            started = first if started > seconds else max(started, first)
        span = progress.time_left(own[row.batch_id], started, seconds, row.lines)
        if span is None and not own[row.batch_id]:
            learned = _learned(queued, now) if learned is None else learned
            span = _wait(row, queued, learned)
        if span is not None:
            spans[row.batch_id] = Span(seconds + span.earliest, seconds + span.latest)
    return spans


def _learned(queued: Sequence[Queued], now: datetime) -> dict[str, Costs | None]:
    done = samples.of_models({row.model for row in queued if row.model}, now - _LEARN_FROM)
    return {model: progress.costs(found) for model, found in done.items()}


def _wait(row: Queued, queued: Sequence[Queued], learned: dict[str, Costs | None]) -> Span | None:
    """Return when a batch ends that has not begun, by what lines of its model cost others."""
    costs = learned.get(row.model or "")
    if costs is None:
        return None
    ahead = [other for other in queued[: queued.index(row)] if other.model == row.model]
    return progress.wait(_seconds(row, costs), sum(_seconds(other, costs) for other in ahead))


def _seconds(row: Queued, costs: Costs) -> float:
    return costs.seconds(row.lines, row.input_bytes * row.lines / max(row.total, 1) / _BYTES_PER_TOKEN or None)
