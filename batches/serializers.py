"""The batch object on the wire."""

from datetime import datetime
from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from batches.models import Batch, OnInvalidLine
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


class ExtraDict(TypedDict):
    """What this server knows of a batch beyond OpenAI's object."""

    priority: int
    paused: bool
    allow_mixed_models: bool
    on_invalid_line: Literal["fail", "skip"]
    continue_from: str | None
    carried: Annotated[int, Meta(description="Completed lines whose answers were taken over.")]


class BatchDict(TypedDict):
    """OpenAI's batch object (contract.md 2.2)."""

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


def _unix(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def batch_dict(batch: Batch) -> BatchDict:
    """Return OpenAI's batch object, every key present, null for what is not yet (contract.md 2.2)."""
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
            "allow_mixed_models": batch.allow_mixed_models,
            "on_invalid_line": "skip" if batch.on_invalid_line == OnInvalidLine.SKIP else "fail",
            "continue_from": batch.continue_from or None,
            "carried": batch.carried,
        },
    }


def is_paused(batch: Batch) -> bool:
    """Return whether a batch could run and was told not to."""
    return batch.paused_at is not None and batch.status in STEERABLE
