"""Measured rates: what was committed in each stretch of time, kept per batch and model."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from django.db.backends.utils import CursorWrapper

from batches.outcome import Outcome
from batches.progress import SAMPLE_SECONDS

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
