"""What of batches is counted in the tally. Each is called in the transaction that makes it so."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connection

from batches.outcome import Outcome
from batches.states import BatchStatus
from vbatch_site import tally
from vbatch_site.tally import Counter

MOVES = "batch_moves"
LINES, TOKENS, RETRIES, SECONDS = "lines", "tokens", "line_retries", "line_seconds"
LEASES_LOST, DROPPED = "leases_lost", "lines_dropped"
ATTEMPTS = "webhook_attempts"

_MOVED = """
    INSERT INTO vbatch_site_tally (name, project_id, model, label, value)
    SELECT %s, project_id, '', %s, 1 FROM batches_batch WHERE id = %s
"""


def move(batch_id: str, to: BatchStatus, **_: Any) -> None:
    """Count a state that a batch entered."""
    with connection.cursor() as cursor:
        cursor.execute(_MOVED, [MOVES, to.value, batch_id])


def lines(committed: Iterable[tuple[int, str, Sequence[Outcome]]]) -> None:
    """Count outcomes, given by project and model."""
    sums: dict[Counter, float] = defaultdict(float)
    for project_id, model, outcomes in committed:
        done = read = cached = written = thought = milliseconds = retries = 0
        for outcome in outcomes:
            milliseconds += outcome.milliseconds
            retries += max(outcome.attempts - 1, 0)
            if outcome.succeeded:
                done += 1
                read += outcome.input_tokens
                cached += outcome.cached_tokens
                written += outcome.output_tokens
                thought += outcome.reasoning_tokens
        sums[Counter(LINES, project_id, model, "completed")] += done
        sums[Counter(LINES, project_id, model, "failed")] += len(outcomes) - done
        sums[Counter(TOKENS, project_id, model, "input")] += read
        sums[Counter(TOKENS, project_id, model, "cached")] += cached
        sums[Counter(TOKENS, project_id, model, "output")] += written
        sums[Counter(TOKENS, project_id, model, "reasoning")] += thought
        sums[Counter(SECONDS, project_id, model)] += milliseconds / 1000
        sums[Counter(RETRIES, project_id, model)] += retries
    tally.count(sums)


def dropped(refused: Iterable[tuple[int, str, int]]) -> None:
    """Count results of lost leases, given by project and model."""
    sums: dict[Counter, float] = defaultdict(float)
    for project_id, model, results in refused:
        sums[Counter(DROPPED, project_id, model)] += results
    tally.count(sums)


def lease_lost(project_id: int, model: str) -> None:
    """Count a shard that was taken over from a worker that fell silent."""
    tally.count({Counter(LEASES_LOST, project_id, model): 1})


def attempt(project_id: int, result: str) -> None:
    """Count an attempt to deliver a webhook, by what became of the delivery."""
    tally.count({Counter(ATTEMPTS, project_id, label=result): 1})
