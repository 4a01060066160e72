"""The Batch API."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import close_old_connections
from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils import timezone
from rest_framework.response import Response
from rest_framework.views import APIView

from batches import creation, preflight, results, retrying, schema, standing, steering, streams
from batches.models import Batch, StaleTransition
from batches.serializers import batch_dicts, queue_dict
from batches.states import BatchStatus
from vbatch_site import traces
from vbatch_site.models import Project
from vbatch_site.openai import idempotency, owned
from vbatch_site.openai.auth import ApiRequest
from vbatch_site.openai.errors import ApiError, missing, wrong_id
from vbatch_site.openai.pagination import page, read_limit

# A cancel of these changes nothing and is no error (contract.md 2.5).
_CANCEL_IS_LATE = (BatchStatus.CANCELLING, BatchStatus.CANCELLED, BatchStatus.FINALIZING)


def find_batch(project: Project, batch_id: str) -> Batch:
    """Return the project's batch, or raise the 404 that also hides other projects' batches."""
    if not batch_id.startswith("batch"):
        raise wrong_id("batch_id", batch_id[:200], "batch")
    refusal = ApiError(f"No batch found with id '{batch_id[:200]}'.", http_status=404)
    return owned.find(Batch.objects.all(), project, batch_id, refusal)


def _shown(batch: Batch) -> Response:
    return Response(batch_dicts([batch])[0])


@contextmanager
def _conflicts(batch: Batch, verb: str, harmless: tuple[BatchStatus, ...] = ()) -> Iterator[None]:
    """Answer 409 when the batch is past what is asked for, unless that changes nothing."""
    try:
        yield
    except StaleTransition:
        batch.refresh_from_db()
        if batch.status not in harmless:
            raise ApiError(
                f"Cannot {verb} a batch with status '{batch.status}'.",
                http_status=409,
                # Both SDKs repeat a 409 twice before they raise; nothing would change (contract.md 2.5).
                headers={"x-should-retry": "false"},
            ) from None


@schema.batches
class BatchesView(APIView):
    """Create and list batches."""

    def post(self, request: ApiRequest) -> Response:
        """Start a batch."""
        key = idempotency.claim(request, request.data)
        batch = creation.create(request.user, request.data, key, by=request.auth)
        traces.name_request(request, "create", batch.pk, batch=batch.pk)
        return _shown(batch)

    def get(self, request: ApiRequest) -> Response:
        """List batches, newest first."""
        rows = Batch.objects.visible_to(request.user)
        return Response(
            page(
                rows,
                rows,
                request.query_params,
                default=schema.DEFAULT_PAGE,
                maximum=schema.LARGEST_PAGE,
                serialize=batch_dicts,
            )
        )


@schema.preflight
class PreflightView(APIView):
    """What a batch would be."""

    def post(self, request: ApiRequest) -> Response:
        """Look through an input file."""
        return Response(preflight.preflight(request.user, request.data))


@schema.batch
class BatchView(APIView):
    """One batch."""

    def get(self, request: ApiRequest, batch_id: str) -> Response:
        """Show it."""
        return _shown(find_batch(request.user, batch_id))

    def post(self, request: ApiRequest, batch_id: str) -> Response:
        """Change its priority."""
        batch = find_batch(request.user, batch_id)
        if "priority" not in request.data:
            raise missing("priority")
        priority = creation.read_priority(request.data["priority"])
        with _conflicts(batch, "change the priority of"):
            steering.prioritize(batch, priority, by=steering.name_of(request.auth))
        return _shown(batch)


class _SteerView(APIView):
    """What one batch is told to do."""

    def tell(
        self, request: ApiRequest, batch_id: str, do: Callable[[Batch, str], None], *harmless: BatchStatus
    ) -> Response:
        """Tell it, and show it; a batch that is past that answers 409, unless that changes nothing."""
        batch = find_batch(request.user, batch_id)
        with _conflicts(batch, do.__name__, harmless):
            do(batch, steering.name_of(request.auth))
        return _shown(batch)


@schema.cancel
class CancelView(_SteerView):
    """The end of one batch, asked for."""

    def post(self, request: ApiRequest, batch_id: str) -> Response:
        """Cancel it: what is finished is kept, the rest does not run."""
        return self.tell(request, batch_id, steering.cancel, *_CANCEL_IS_LATE)


@schema.pause
class PauseView(_SteerView):
    """A batch that waits until it is told to go on."""

    def post(self, request: ApiRequest, batch_id: str) -> Response:
        """Pause it: no more lines are started."""
        return self.tell(request, batch_id, steering.pause)


@schema.resume
class ResumeView(_SteerView):
    """A paused batch that goes on."""

    def post(self, request: ApiRequest, batch_id: str) -> Response:
        """Resume it."""
        return self.tell(request, batch_id, steering.resume)


@schema.retry
class RetryView(APIView):
    """Lines that are run again."""

    def post(self, request: ApiRequest, batch_id: str) -> Response:
        """Run failed lines again, in this batch or in one that continues from it."""
        batch = find_batch(request.user, batch_id)
        lines = retrying.read_lines(request.data)
        key = idempotency.claim(request, request.data)
        with _conflicts(batch, "retry lines of"):
            return _shown(retrying.retry(batch, lines, by=request.auth, key=key))


@schema.results
class ResultsView(APIView):
    """The lines that are finished, while a batch runs and after it ended."""

    def get(self, request: ApiRequest, batch_id: str) -> HttpResponseBase:
        """Send a page of lines, or all of them as events until the batch ends."""
        batch = find_batch(request.user, batch_id)
        as_events = "text/event-stream" in request.headers.get("accept", "")
        after = _read_position(request.query_params.get("after"), "after") or 0
        limit = read_limit(request.query_params, schema.DEFAULT_RESULTS, schema.MOST_RESULTS)
        if as_events:
            after = _read_position(request.headers.get("last-event-id"), "Last-Event-ID") or after
        reader = results.Reader(batch)
        try:
            last = reader.last_position(after, limit)
        except results.ResultsDeleted:
            raise ApiError("The results of this batch were deleted.", code="results_deleted", http_status=404) from None
        # A stream may last for hours; the connection that looked up the key goes back to the pool meanwhile.
        close_old_connections()
        if as_events:
            response = StreamingHttpResponse(streams.events(reader, after), content_type="text/event-stream")
            # Asks nginx not to collect the stream.
            response.headers["x-accel-buffering"] = "no"
        else:
            response = StreamingHttpResponse(streams.ndjson(reader, after, last), content_type="application/x-ndjson")
            response.headers["x-next-after"] = str(last)
        response.headers["cache-control"] = "no-store"
        return response


def _read_position(text: str | None, param: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch("[0-9]{1,10}", text):
        message = f"Invalid '{param}': expected the position that an earlier answer ended with."
        raise ApiError(message, param=param, code="invalid_value")
    return min(int(text), 2**31 - 1)


@schema.queue
class QueueView(APIView):
    """What runs and waits."""

    def get(self, request: ApiRequest) -> Response:
        """Show the project's own batches in line, and how much others have there."""
        queued = standing.queue(timezone.now())
        return Response(queue_dict(queued, request.user.pk, standing.positions(queued), schema.MOST_QUEUED))
