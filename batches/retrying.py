"""Run lines again that failed: in the same batch while it runs, in one that continues from it when it has ended."""

from collections import defaultdict
from collections.abc import Collection
from typing import Any

from django.db import transaction
from django.db.models import F, Max, Q
from django.utils import timezone

from batches import creation, doorbell, steering
from batches.models import Batch, BatchEvent, OnInvalidLine, Result, Shard, StaleTransition
from batches.planning import SHARD_LINES, PlannedLine, pack, unpack
from batches.states import BatchStatus, EventKind
from vbatch_site import audit
from vbatch_site.models import ApiKey
from vbatch_site.openai.errors import ApiError, Json, wrong_type
from vbatch_site.openai.idempotency import Claim

MOST_LINES = 50_000  # named in one request
_ENDED = (BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED)


def read_lines(body: Json) -> list[str] | None:
    """Return the custom_ids of the lines to run again, None for all that failed, or raise ApiError."""
    value = body.get("lines")
    if value is None:
        return None
    if not isinstance(value, list):
        raise wrong_type("lines", "an array", value)
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise wrong_type(f"lines[{index}]", "a string", item)
        if "\0" in item:
            raise ApiError(
                f"Invalid 'lines[{index}]': no line has this custom_id.", param="lines", code="invalid_value"
            )
    if not 0 < len(value) <= MOST_LINES:
        message = f"Invalid 'lines': expected 1 to {MOST_LINES} custom_ids, but got {len(value)}."
        raise ApiError(message, param="lines", code="invalid_value")
    return value


def retry(batch: Batch, lines: list[str] | None, by: ApiKey | str | None, key: Claim | None = None) -> Batch:
    """Run failed lines again and return the batch that runs them; raise StaleTransition when it can't be had now.

    Raises ApiError where there is nothing to run, or a line is not one that can be.
    """
    if key and (held := key.holder()):
        return Batch.objects.get(pk=held)
    if batch.status in _ENDED:
        return _continue(batch, lines, by, key)
    _run_again(batch, lines, steering.name_of(by), key)
    batch.refresh_from_db()
    return batch


def _continue(batch: Batch, lines: list[str] | None, by: ApiKey | str | None, key: Claim | None) -> Batch:
    """Start a batch over the same file that takes over all answers but those that are to be had anew."""
    # One that ended before it was validated counts no lines, and ran none.
    if lines is None and batch.in_progress_at is not None and batch.completed == batch.total:
        raise _nothing()
    wanted: dict[str, Any] = {
        "input_file_id": batch.input_file_id,
        "endpoint": batch.endpoint,
        "completion_window": batch.completion_window,
        "metadata": batch.metadata,
        "priority": batch.priority,
        "allow_mixed_models": batch.allow_mixed_models,
        "on_invalid_line": OnInvalidLine(batch.on_invalid_line).value,
        "continue_from": batch.pk,
    }
    if batch.output_life_seconds:
        wanted["output_expires_after"] = {"anchor": "created_at", "seconds": batch.output_life_seconds}
    return creation.create(batch.project, wanted, key, by=by, chosen_lines=lines)


def _run_again(batch: Batch, lines: list[str] | None, by: str, key: Claim | None) -> None:
    """Move failed lines of a running batch to new shards, and their results out of its counts."""
    with transaction.atomic():
        # All shards before the batch, as everyone locks them, so that nobody's claim or commit comes in between.
        shards = list(Shard.objects.filter(batch_id=batch.pk).select_for_update().order_by("id"))
        locked = Batch.objects.select_for_update(no_key=True).get(pk=batch.pk)
        if locked.status != BatchStatus.IN_PROGRESS:
            raise StaleTransition(f"{batch.pk} is {locked.status}")
        # The same request at the same time was first, and held these locks until it was done.
        if key and key.holder():
            return
        failed = _failed(batch.pk, lines)
        moved: dict[str, list[PlannedLine]] = defaultdict(list)
        for shard in shards:
            places = list(unpack(shard.lines))
            taken = [place for place in places if place.number in failed]
            if taken:
                moved[shard.model] += taken
                kept = pack(place for place in places if place.number not in failed)
                Shard.objects.filter(pk=shard.pk).update(
                    lines=kept, count=F("count") - len(taken), done=F("done") - len(taken)
                )
        index = (Shard.objects.filter(batch_id=batch.pk).aggregate(last=Max("index"))["last"] or 0) + 1
        # As many to a shard as in a plan: several workers share what is run again.
        cut = (
            (model, places[start : start + SHARD_LINES])
            for model, places in sorted(moved.items())
            for start in range(0, len(places), SHARD_LINES)
        )
        Shard.objects.bulk_create(
            Shard(batch_id=batch.pk, index=at, model=model, lines=pack(places), count=len(places))
            for at, (model, places) in enumerate(cut, index)
        )
        Result.objects.filter(batch_id=batch.pk, line__in=failed).delete()
        Batch.objects.filter(pk=batch.pk).update(failed=F("failed") - len(failed))
        reason = f"{len(failed)} lines, asked for by {by}"
        BatchEvent.objects.create(
            batch=batch, at=timezone.now(), kind=EventKind.RETRY, status=locked.status, reason=reason[:200]
        )
        audit.note_change(batch.pk)
        if key:
            key.hold(batch.pk)
        doorbell.ring_gpu()


def _failed(batch_id: str, lines: Collection[str] | None) -> set[int]:
    """Return the numbers of the failed lines, all or those named; raise ApiError."""
    # A line without an attempt was bad in the file: it can't be run at all.
    results = Result.objects.filter(batch_id=batch_id, attempts__gt=0)
    failed = results.filter(~Q(status_code=200) | Q(status_code=None) | ~Q(error_code=""))
    if lines is None:
        found = set(failed.values_list("line", flat=True))
        if not found:
            raise _nothing()
        return found
    by_name = dict(failed.filter(custom_id__in=lines).values_list("custom_id", "line"))
    if other := next((name for name in lines if name not in by_name), None):
        message = f"Invalid 'lines': '{other[:200]}' is no line that failed; a running batch repeats no others."
        raise ApiError(message, param="lines", code="line_not_failed")
    return set(by_name.values())


def _nothing() -> ApiError:
    return ApiError("There is nothing to retry: no line has failed.", code="nothing_to_retry")
