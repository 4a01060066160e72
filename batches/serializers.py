"""The batch object on the wire."""

from collections.abc import Sequence
from datetime import datetime
from math import ceil
from typing import Annotated, Literal, TypedDict, cast

from django.utils import timezone
from msgspec import Meta

from batches.models import Batch, OnInvalidLine
from batches.progress import hit_rate
from batches.standing import Queued, Standing, standings
from batches.states import STEERABLE, BatchStatus
from vbatch_site.openai.schema import PageDict, UnixTime


class LineErrorDict(TypedDict):
    """What is wrong with one line of the input file, or with all of it."""

    code: str
    message: str
    param: str | None
    line: int | None


class ErrorsDict(TypedDict):
    """Why a batch failed."""

    object: Literal["list"]
    data: list[LineErrorDict]


class CountsDict(TypedDict):
    """How far a batch is, in requests."""

    total: int
    completed: int
    failed: int


class InputDetailsDict(TypedDict):
    """Of the input tokens."""

    cached_tokens: int


class OutputDetailsDict(TypedDict):
    """Of the output tokens."""

    reasoning_tokens: int


class UsageDict(TypedDict):
    """The sum over the requests that succeeded."""

    input_tokens: int
    input_tokens_details: InputDetailsDict
    output_tokens: int
    output_tokens_details: OutputDetailsDict
    total_tokens: int


class RatesDict(TypedDict):
    """How fast lines are finished."""

    last_minute: float
    since_start: float


class ProvenanceDict(TypedDict):
    """One engine that answered lines of the batch."""

    model: str
    engine: Annotated[str, Meta(description="`vllm`, or `sim` for made-up answers.")]
    engine_version: str | None
    engine_args: list[str]
    revision: Annotated[str | None, Meta(description="The model hub's commit.")]
    weights_hash: Annotated[
        str | None, Meta(description="Of the names and sizes of the weights' files, and of blocks spread over each.")
    ]
    tokenizer_hash: str | None
    chat_template_hash: str | None
    gpu: str | None


class ExtraDict(TypedDict):
    """What this server knows of a batch beyond OpenAI's object."""

    priority: int
    paused: bool
    queue_position: Annotated[int | None, Meta(description="0 while its lines are run; null when it waits for none.")]
    eta_earliest: UnixTime | None
    eta_latest: UnixTime | None
    lines_per_second: RatesDict | None
    prefix_cache_hit_rate: Annotated[float | None, Meta(description="Cached of all prompt tokens, 0 to 1.")]
    provenance: list[ProvenanceDict]
    allow_mixed_models: bool
    on_invalid_line: Literal["fail", "skip"]
    continue_from: str | None
    carried: Annotated[int, Meta(description="Completed lines whose answers were taken over.")]


class BatchDict(TypedDict):
    """OpenAI's batch object, and one more key, `vbatch`."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: ErrorsDict | None
    input_file_id: str
    completion_window: str
    status: Annotated[str, Meta(extra_json_schema={"enum": [status.value for status in BatchStatus]})]
    output_file_id: str | None
    error_file_id: str | None
    created_at: UnixTime
    in_progress_at: UnixTime | None
    expires_at: UnixTime
    finalizing_at: UnixTime | None
    completed_at: UnixTime | None
    failed_at: UnixTime | None
    expired_at: UnixTime | None
    cancelling_at: UnixTime | None
    cancelled_at: UnixTime | None
    request_counts: CountsDict
    usage: UsageDict
    metadata: dict[str, str] | None
    vbatch: ExtraDict


class BatchListDict(PageDict):
    """One page of batches."""

    data: list[BatchDict]


class QueuedDict(TypedDict):
    """A batch that runs or waits."""

    batch_id: str
    model: Annotated[str | None, Meta(description="Null with several.")]
    priority: int
    queue_position: Annotated[int, Meta(description="Among the batches of all projects; 0 while its lines are run.")]
    lines_left: int
    eta_earliest: UnixTime | None
    eta_latest: UnixTime | None


class QueueTotalsDict(TypedDict):
    """How much there is to do."""

    batches: int
    running: Annotated[int, Meta(description="Of the batches, those whose lines are being run.")]
    lines: Annotated[int, Meta(description="That are not finished.")]


class QueueDict(TypedDict):
    """What runs and waits. Paused batches are in no queue."""

    object: Literal["queue"]
    data: list[QueuedDict]
    own: QueueTotalsDict
    others: QueueTotalsDict


def queue_dict(queued: Sequence[Queued], project_id: int, positions: dict[str, int], most: int) -> QueueDict:
    """Return a project's part of the queue, and of the rest no more than its size."""
    own = [row for row in queued if row.project_id == project_id]
    shown = own[:most]
    found = standings(list(Batch.objects.filter(pk__in=[row.batch_id for row in shown])), timezone.now())
    data: list[QueuedDict] = []
    for row in shown:
        eta = found[row.batch_id].eta if row.batch_id in found else None
        data.append(
            {
                "batch_id": row.batch_id,
                "model": row.model,
                "priority": row.priority,
                "queue_position": positions[row.batch_id],
                "lines_left": row.lines,
                "eta_earliest": int(eta.earliest) if eta else None,
                "eta_latest": ceil(eta.latest) if eta else None,
            }
        )
    others = [row for row in queued if row.project_id != project_id]
    return {"object": "queue", "data": data, "own": _totals(own), "others": _totals(others)}


def _totals(rows: Sequence[Queued]) -> QueueTotalsDict:
    return {
        "batches": len(rows),
        "running": sum(row.running for row in rows),
        "lines": sum(row.lines for row in rows),
    }


def _unix(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def batch_dict(batch: Batch, standing: Standing | None = None) -> BatchDict:
    """Return OpenAI's batch object, every key present, null for what is not yet (contract.md 2.2)."""
    standing = standing or Standing()
    return {
        "id": batch.pk,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model,
        "errors": batch.errors,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": int(batch.created_at.timestamp()),
        "in_progress_at": _unix(batch.in_progress_at),
        "expires_at": int(batch.expires_at.timestamp()),
        "finalizing_at": _unix(batch.finalizing_at),
        "completed_at": _unix(batch.completed_at),
        "failed_at": _unix(batch.failed_at),
        "expired_at": _unix(batch.expired_at),
        "cancelling_at": _unix(batch.cancelling_at),
        "cancelled_at": _unix(batch.cancelled_at),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": batch.cached_tokens},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": batch.reasoning_tokens},
            "total_tokens": batch.input_tokens + batch.output_tokens,
        },
        "metadata": batch.metadata,
        "vbatch": {
            "priority": batch.priority,
            "paused": is_paused(batch),
            "queue_position": standing.position,
            "eta_earliest": int(standing.eta.earliest) if standing.eta else None,
            "eta_latest": ceil(standing.eta.latest) if standing.eta else None,
            "lines_per_second": _rates(standing),
            "prefix_cache_hit_rate": hit_rate(batch.cached_tokens, batch.input_tokens),
            "provenance": cast(list[ProvenanceDict], standing.provenance),
            "allow_mixed_models": batch.allow_mixed_models,
            "on_invalid_line": "skip" if batch.on_invalid_line == OnInvalidLine.SKIP else "fail",
            "continue_from": batch.continue_from or None,
            "carried": batch.carried,
        },
    }


def batch_dicts(batches: Sequence[Batch]) -> list[BatchDict]:
    """Return batch objects with all that is known of how they stand; as many queries for a list as for one."""
    found = standings(batches, timezone.now())
    return [batch_dict(batch, found[batch.pk]) for batch in batches]


def _rates(standing: Standing) -> RatesDict | None:
    if standing.rates is None:
        return None
    return {"last_minute": round(standing.rates.last_minute, 3), "since_start": round(standing.rates.since_start, 3)}


def is_paused(batch: Batch) -> bool:
    """Return whether a batch could run and was told not to."""
    return batch.paused_at is not None and batch.status in STEERABLE
