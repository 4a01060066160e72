"""The Batch API."""

from rest_framework.response import Response
from rest_framework.views import APIView

from batches import creation, schema, steering
from batches.models import Batch, StaleTransition
from batches.serializers import batch_dict
from batches.states import BatchStatus
from vbatch_site.models import Project
from vbatch_site.openai import idempotency, owned
from vbatch_site.openai.auth import ApiRequest
from vbatch_site.openai.errors import ApiError, wrong_id
from vbatch_site.openai.pagination import page

# A cancel of these changes nothing and is no error (contract.md 2.5).
_CANCEL_IS_LATE = (BatchStatus.CANCELLING, BatchStatus.CANCELLED, BatchStatus.FINALIZING)


def find_batch(project: Project, batch_id: str) -> Batch:
    """Return the project's batch, or raise the 404 that also hides other projects' batches."""
    if not batch_id.startswith("batch"):
        raise wrong_id("batch_id", batch_id[:200], "batch")
    refusal = ApiError(f"No batch found with id '{batch_id[:200]}'.", http_status=404)
    return owned.find(Batch.objects.all(), project, batch_id, refusal)


@schema.batches
class BatchesView(APIView):
    """Create and list batches."""

    def post(self, request: ApiRequest) -> Response:
        """Start a batch."""
        key = idempotency.claim(request, request.data)
        return Response(batch_dict(creation.create(request.user, request.data, key)))

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
                serialize=batch_dict,
            )
        )


@schema.batch
class BatchView(APIView):
    """One batch."""

    def get(self, request: ApiRequest, batch_id: str) -> Response:
        """Show it."""
        return Response(batch_dict(find_batch(request.user, batch_id)))


@schema.cancel
class CancelView(APIView):
    """The end of one batch, asked for."""

    def post(self, request: ApiRequest, batch_id: str) -> Response:
        """Cancel it: what is finished is kept, the rest does not run."""
        batch = find_batch(request.user, batch_id)
        try:
            steering.cancel(batch, by=f"key {request.auth.prefix}" if request.auth else "a request without a key")
        except StaleTransition:
            batch.refresh_from_db()
            if batch.status not in _CANCEL_IS_LATE:
                raise ApiError(
                    f"Cannot cancel a batch with status '{batch.status}'.",
                    http_status=409,
                    # Both SDKs repeat a 409 twice before they raise; nothing would change (contract.md 2.5).
                    headers={"x-should-retry": "false"},
                ) from None
        return Response(batch_dict(batch))
