"""How the Batch API is described."""

from typing import Annotated, Literal, NotRequired, TypedDict

from django.conf import settings
from drf_spectacular.utils import OpenApiParameter, extend_schema_view
from msgspec import Meta

from batches.creation import MAX_METADATA_KEY, MAX_METADATA_PAIRS, MAX_METADATA_VALUE
from batches.models import HIGHEST_PRIORITY, LOWEST_PRIORITY
from batches.preflight import PreflightDict
from batches.retrying import MOST_LINES
from batches.serializers import BatchDict, BatchListDict, QueueDict
from batches.validation import ENDPOINTS
from batches.webhooks.endpoints import MAX_SECRET
from batches.webhooks.models import MAX_URL
from vbatch_site.openai.schema import AFTER, LifetimeDict, limit, operation

BATCHES = "Batches"
DEFAULT_PAGE = 20
LARGEST_PAGE = 100
DEFAULT_RESULTS = 1000
MOST_RESULTS = 10_000
MOST_QUEUED = 1000

_KEY = Annotated[str, Meta(max_length=MAX_METADATA_KEY, pattern="^[^\\x00]*$")]
_VALUE = Annotated[str, Meta(max_length=MAX_METADATA_VALUE, pattern="^[^\\x00]*$")]

_Priority = Annotated[int, Meta(ge=LOWEST_PRIORITY, le=HIGHEST_PRIORITY, description="Higher goes first.")]


class BatchWebhookDict(TypedDict):
    """Where to send this batch's events; never shown again."""

    url: Annotated[str, Meta(max_length=MAX_URL, pattern="^https://")]
    secret: NotRequired[Annotated[str, Meta(min_length=1, max_length=MAX_SECRET)] | None]
    events: NotRequired[Annotated[list[str], Meta(min_length=1)] | None]


class CreateBatchDict(TypedDict):
    """A batch to run. Endpoint and window may be left out when `metadata.model` names a model."""

    input_file_id: Annotated[str, Meta(pattern="^file", max_length=64)]
    endpoint: Annotated[str, Meta(extra_json_schema={"enum": list(ENDPOINTS)})]
    completion_window: Annotated[str, Meta(extra_json_schema={"enum": settings.VBATCH_COMPLETION_WINDOWS})]
    metadata: NotRequired[Annotated[dict[_KEY, _VALUE], Meta(max_length=MAX_METADATA_PAIRS)] | None]
    output_expires_after: NotRequired[LifetimeDict | None]
    allow_mixed_models: NotRequired[bool | None]
    on_invalid_line: NotRequired[Literal["fail", "skip"] | None]
    continue_from: NotRequired[Annotated[str, Meta(pattern="^batch", max_length=40)] | None]
    priority: NotRequired[_Priority | None]
    webhook: NotRequired[BatchWebhookDict | None]


class RetryDict(TypedDict):
    """Lines to run again, by their custom_ids; all that failed when none are named."""

    lines: NotRequired[Annotated[list[str], Meta(min_length=1, max_length=MOST_LINES)] | None]


class UpdateBatchDict(TypedDict):
    """What can be changed of a batch that has not ended."""

    priority: _Priority


class PreflightBatchDict(TypedDict):
    """A file to look through, and the fields of a batch that matter to it; its endpoint may be the first line's."""

    input_file_id: Annotated[str, Meta(pattern="^file", max_length=64)]
    endpoint: NotRequired[Annotated[str, Meta(extra_json_schema={"enum": list(ENDPOINTS)})] | None]
    model: NotRequired[Annotated[str, Meta(description="For lines that name none.")] | None]
    allow_mixed_models: NotRequired[bool | None]
    on_invalid_line: NotRequired[Literal["fail", "skip"] | None]


preflight = extend_schema_view(
    post=operation(
        "preflightBatch",
        tag=BATCHES,
        summary="Look through an input file",
        body=PreflightBatchDict,
        answer=PreflightDict,
        refuses=[404, 429],
    )
)
batches = extend_schema_view(
    post=operation(
        "createBatch",
        tag=BATCHES,
        summary="Create a batch",
        body=CreateBatchDict,
        answer=BatchDict,
        refuses=[409],
        repeatable=True,
    ),
    get=operation(
        "listBatches",
        tag=BATCHES,
        summary="List batches",
        query=[limit(DEFAULT_PAGE, LARGEST_PAGE), AFTER],
        answer=BatchListDict,
        refuses=[400],
    ),
)
batch = extend_schema_view(
    get=operation(
        "retrieveBatch", tag=BATCHES, summary="Show a batch", path="batch_id", answer=BatchDict, refuses=[400]
    ),
    post=operation(
        "updateBatch",
        tag=BATCHES,
        summary="Change a batch's priority",
        path="batch_id",
        body=UpdateBatchDict,
        answer=BatchDict,
        refuses=[409],
    ),
)
cancel = extend_schema_view(
    post=operation(
        "cancelBatch", tag=BATCHES, summary="Cancel a batch", path="batch_id", answer=BatchDict, refuses=[400, 409]
    )
)
pause = extend_schema_view(
    post=operation(
        "pauseBatch", tag=BATCHES, summary="Pause a batch", path="batch_id", answer=BatchDict, refuses=[400, 409]
    )
)
resume = extend_schema_view(
    post=operation(
        "resumeBatch", tag=BATCHES, summary="Resume a batch", path="batch_id", answer=BatchDict, refuses=[400, 409]
    )
)
retry = extend_schema_view(
    post=operation(
        "retryBatchLines",
        tag=BATCHES,
        summary="Run failed lines again: in the same batch while it runs, in a new one when it has ended",
        path="batch_id",
        body=RetryDict,
        answer=BatchDict,
        refuses=[409],
        repeatable=True,
    )
)
_TEXT = {"type": "string"}
_NEXT_AFTER = OpenApiParameter(
    "x-next-after", str, OpenApiParameter.HEADER, response=[200], description="What to send as `after` next."
)
results = extend_schema_view(
    get=operation(
        "streamBatchResults",
        tag=BATCHES,
        summary="Read results in the order in which they were finished, while the batch runs and after it",
        path="batch_id",
        query=[
            limit(DEFAULT_RESULTS, MOST_RESULTS),
            OpenApiParameter(
                "after",
                {"type": "integer", "minimum": 0, "maximum": 2**31 - 1, "default": 0},
                description="The position that the last answer ended with.",
            ),
            OpenApiParameter(
                "Last-Event-ID",
                {"type": "string", "pattern": "^[0-9]{1,10}$"},
                OpenApiParameter.HEADER,
                description="As `after`, and before it, for server-sent events.",
            ),
            _NEXT_AFTER,
        ],
        answer={(200, "application/x-ndjson"): _TEXT, (200, "text/event-stream"): _TEXT},
        refuses=[400],
    )
)
queue = extend_schema_view(
    get=operation("showQueue", tag=BATCHES, summary="Show what runs and waits", answer=QueueDict)
)
