"""What a project may have in line: batches in an hour, requests and tokens that wait."""

from collections.abc import Mapping, Sequence
from datetime import timedelta

from django.db.models import Exists, F, OuterRef, Q, QuerySet, Subquery, Sum
from django.utils import timezone

from batches.models import Batch, Shard
from batches.states import BatchStatus
from batches.validation import LineError
from files.models import File
from vbatch_site import limits
from vbatch_site.models import Project

_HOUR = timedelta(hours=1)
_CLOCKS_DIFFER = timedelta(minutes=1)  # at most, between two hosts

# The cap is on the size of the line, not on the bill, so a rough count will do: no tokenizer is loaded here.
_BYTES_PER_TOKEN = 4

_TRY_AGAIN = "Please try again once some in_progress batches have been completed."


def check_batch_rate(project: Project) -> None:
    """Refuse one batch too many in an hour; call in the transaction that makes the batch. Raises a 429."""
    limit = limits.limit_of(project, "batches_per_hour")
    if limit is None:
        return
    limits.lock(project)
    now = timezone.now()
    # What was made later than now was made before the clock was set back.
    recent = Batch.objects.filter(project=project, created_at__range=(now - _HOUR, now + _CLOCKS_DIFFER))
    recent = recent.order_by("-created_at")
    # The one that has to leave the hour before the next may come.
    oldest = recent.values_list("created_at", flat=True)[limit - 1 : limit].first()
    if oldest is not None:
        message = f"Rate limit reached for batches per hour. Limit: {limit:,} / hour."
        raise limits.too_many(message, (oldest + _HOUR - now).total_seconds())


def over_queue(batch: Batch, wanted: Mapping[str, Sequence[int]]) -> LineError | None:
    """Return the refusal of a batch that would put more in line than its project may have there.

    `wanted` has the bytes of each line, by model. Call in the transaction that opens the batch to the workers.
    """
    most_tokens = limits.limit_of(batch.project, "queued_tokens")
    most_requests = limits.limit_of(batch.project, "queued_requests")
    if most_tokens is None and most_requests is None:
        return None
    # Two batches that are validated at once must count each other.
    limits.lock(batch.project)
    running = Batch.objects.filter(project=batch.project_id, status=BatchStatus.IN_PROGRESS)
    if most_requests is not None:
        left = running.aggregate(sum=Sum(F("total") - F("completed") - F("failed")))["sum"] or 0
        if left + sum(len(lines) for lines in wanted.values()) > most_requests:
            return _refusal("request_limit_exceeded", f"organization {batch.project.name}", most_requests)
    if most_tokens is not None:
        for model, lines in wanted.items():
            if (_bytes(running, model) + sum(lines)) // _BYTES_PER_TOKEN > most_tokens:
                return _refusal("token_limit_exceeded", f"{model} in organization {batch.project.name}", most_tokens)
    return None


def _bytes(running: QuerySet[Batch], model: str) -> int:
    """Return the size of the files of the batches that ask a model."""
    size = File.objects.filter(pk=OuterRef("input_file_id")).values("bytes")
    # A batch of several models has its whole file counted for each of them.
    one_of_several = Q(model=None) & Exists(Shard.objects.filter(batch=OuterRef("pk"), model=model))
    ahead = running.filter(Q(model=model) | one_of_several)
    return int(ahead.annotate(size=Subquery(size)).aggregate(sum=Sum("size"))["sum"] or 0)


def _refusal(code: str, whose: str, limit: int) -> LineError:
    what = code.partition("_")[0]
    message = f"Enqueued {what} limit reached for {whose}. Limit: {limit:,} enqueued {what}s. {_TRY_AGAIN}"
    return LineError(code, message, None, None)
