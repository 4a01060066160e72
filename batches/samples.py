"""Measured rates: what was committed in each stretch of time, kept per batch and model."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from django.db.backends.utils import CursorWrapper
from django.db.models import Sum

from batches import models
from batches.outcome import Outcome
from batches.progress import SAMPLE_SECONDS, Sample

_ADD = """
    INSERT INTO batches_sample
           (batch_id, model, at, lines, failed, input_tokens, cached_tokens, output_tokens, milliseconds)
    VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
        ON CONFLICT (batch_id, at, model) DO UPDATE
       SET lines = batches_sample.lines + excluded.lines,
           failed = batches_sample.failed + excluded.failed,
           input_tokens = batches_sample.input_tokens + excluded.input_tokens,
           cached_tokens = batches_sample.cached_tokens + excluded.cached_tokens,
           output_tokens = batches_sample.output_tokens + excluded.output_tokens,
           milliseconds = batches_sample.milliseconds + excluded.milliseconds
"""


def stretch(now: datetime) -> datetime:
    """Return when the stretch of time began that a moment belongs to."""
    return datetime.fromtimestamp(int(now.timestamp()) // SAMPLE_SECONDS * SAMPLE_SECONDS, UTC)


def add(cursor: CursorWrapper, now: datetime, committed: Iterable[tuple[str, Sequence[Outcome]]]) -> None:
    """Count outcomes, given by model, in the present stretch; call in their transaction, the batches' rows locked."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0] * 6)
    for model, outcomes in committed:
        for outcome in outcomes:
            into = sums[outcome.batch_id, model]
            into[0] += 1
            into[1] += not outcome.succeeded
            into[2] += outcome.input_tokens
            into[3] += outcome.cached_tokens
            into[4] += outcome.output_tokens
            into[5] += outcome.milliseconds
    at = stretch(now)
    for (batch_id, model), values in sorted(sums.items()):
        cursor.execute(_ADD, [batch_id, model, at, *values])


def of_batches(batch_ids: Iterable[str], since: datetime) -> dict[str, list[Sample]]:
    """Return batches' samples from a moment on, oldest first, all models of a batch together."""
    found: dict[str, list[Sample]] = defaultdict(list)
    rows = models.Sample.objects.filter(batch_id__in=list(batch_ids), at__gte=since)
    for row in rows.order_by("at").values_list("batch_id", *_COLUMNS):
        found[row[0]].append(_sample(row[1:]))
    return found


def of_models(names: Iterable[str], since: datetime) -> dict[str, list[Sample]]:
    """Return what models did from a moment on, all batches together."""
    found: dict[str, list[Sample]] = defaultdict(list)
    sums = [Sum(name) for name in _COLUMNS[1:]]
    rows = models.Sample.objects.filter(model__in=list(names), at__gte=since).order_by("at")
    for row in rows.values("model", "at").annotate(*sums).values_list("model", "at", *(s.default_alias for s in sums)):
        found[row[0]].append(_sample(row[1:]))
    return found


_COLUMNS = ("at", "lines", "milliseconds", "input_tokens", "cached_tokens", "output_tokens")


def _sample(row: Sequence[Any]) -> Sample:
    at, lines, milliseconds, read, cached, decoded = row
    return Sample(at.timestamp(), lines, milliseconds, max(read - cached, 0), decoded)
