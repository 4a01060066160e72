"""The webhook routes: OpenAI's management of endpoints (contract.md 8.4), and deliveries, which are ours."""

from rest_framework.response import Response
from rest_framework.views import APIView

from batches.webhooks import deliveries, endpoints, schema
from batches.webhooks.models import DeliveryState, WebhookDelivery, WebhookEndpoint
from batches.webhooks.payload import EVENT_TYPES
from batches.webhooks.serializers import delivery_detail, delivery_dict, endpoint_dict, endpoint_with_secret
from vbatch_site.models import Project
from vbatch_site.openai import owned
from vbatch_site.openai.auth import ApiRequest
from vbatch_site.openai.errors import ApiError, not_supported
from vbatch_site.openai.pagination import page


def find_endpoint(project: Project, endpoint_id: str) -> WebhookEndpoint:
    """Return the project's endpoint, or raise the 404 that also hides other projects' endpoints."""
    refusal = ApiError(f"No webhook endpoint found with id '{endpoint_id[:200]}'.", http_status=404)
    return owned.find(WebhookEndpoint.objects.listed(), project, endpoint_id, refusal)


def find_delivery(project: Project, delivery_id: str) -> WebhookDelivery:
    """Return the project's delivery with its endpoint, or raise the 404."""
    refusal = ApiError(f"No webhook delivery found with id '{delivery_id[:200]}'.", http_status=404)
    return owned.find(WebhookDelivery.objects.select_related("endpoint"), project, delivery_id, refusal)


@schema.endpoints
class EndpointsView(APIView):
    """Create and list endpoints."""

    def post(self, request: ApiRequest) -> Response:
        """Create one; the answer is the only one that shows its secret."""
        return Response(endpoint_with_secret(*endpoints.create(request.user, request.data)))

    def get(self, request: ApiRequest) -> Response:
        """List them, newest first."""
        return Response(
            page(
                WebhookEndpoint.objects.visible_to(request.user),
                WebhookEndpoint.objects.of_project(request.user),
                request.query_params,
                default=schema.DEFAULT_PAGE,
                maximum=schema.LARGEST_PAGE,
                serialize=lambda rows: [endpoint_dict(row) for row in rows],
            )
        )


@schema.endpoint
class EndpointView(APIView):
    """One endpoint."""

    def get(self, request: ApiRequest, webhook_endpoint_id: str) -> Response:
        """Show it."""
        return Response(endpoint_dict(find_endpoint(request.user, webhook_endpoint_id)))

    def post(self, request: ApiRequest, webhook_endpoint_id: str) -> Response:
        """Change it."""
        endpoint = find_endpoint(request.user, webhook_endpoint_id)
        endpoints.update(endpoint, request.data)
        return Response(endpoint_dict(endpoint))

    def delete(self, request: ApiRequest, webhook_endpoint_id: str) -> Response:
        """Delete it."""
        endpoint = find_endpoint(request.user, webhook_endpoint_id)
        endpoints.delete(endpoint)
        return Response({"id": endpoint.pk, "object": "webhook_endpoint.deleted", "deleted": True})


@schema.rotate
class RotateSecretView(APIView):
    """The secret of one endpoint."""

    def post(self, request: ApiRequest, webhook_endpoint_id: str) -> Response:
        """Make a new one and show it."""
        endpoint = find_endpoint(request.user, webhook_endpoint_id)
        secret = endpoints.rotate(endpoint, request.data)
        return Response(endpoint_with_secret(endpoint, secret))


@schema.test
class TestView(APIView):
    """A try of one endpoint."""

    def post(self, request: ApiRequest, webhook_endpoint_id: str) -> Response:
        """Send a made-up event and show which status came back."""
        endpoint = find_endpoint(request.user, webhook_endpoint_id)
        kind = endpoints.read_kind(request.data)
        answer = endpoints.send_test(endpoint, kind)
        if not answer.status:
            message = f"The test could not be delivered: {answer.error}."
            raise ApiError(message, code="webhook_test_failed")
        return Response(
            {
                "object": "webhook_endpoint.test",
                "webhook_endpoint_id": endpoint.pk,
                "event_type": kind.value,
                "status_code": answer.status,
                "success": True,
            }
        )


@schema.enable
class EnableView(APIView):
    """An endpoint that was disabled because it failed for too long."""

    def post(self, request: ApiRequest, webhook_endpoint_id: str) -> Response:
        """Send to it again."""
        endpoint = find_endpoint(request.user, webhook_endpoint_id)
        deliveries.enable(endpoint)
        endpoint.refresh_from_db()
        return Response(endpoint_dict(endpoint))


@schema.event_types
class EventTypesView(APIView):
    """What can be subscribed to."""

    def get(self, request: ApiRequest) -> Response:
        """List it."""
        return Response({"object": "list", "data": EVENT_TYPES})


_FILTERS = {
    "webhook_endpoint_id": ("endpoint", None),
    "batch_id": ("batch_id", None),
    "event_type": ("event_type", EVENT_TYPES),
    "status": ("state", [state.value for state in DeliveryState]),
}


@schema.deliveries
class DeliveriesView(APIView):
    """What was sent, or is to be."""

    def get(self, request: ApiRequest) -> Response:
        """List it, newest first."""
        owned = WebhookDelivery.objects.visible_to(request.user)
        rows = owned.select_related("endpoint").defer("payload", "log")
        for name, (field, choices) in _FILTERS.items():
            if value := request.query_params.get(name, "").replace("\0", ""):
                if choices is not None and value not in choices:
                    raise not_supported(name, value[:200], choices)
                rows = rows.filter(**{field: value})
        return Response(
            page(
                rows,
                owned,
                request.query_params,
                default=schema.DEFAULT_PAGE,
                maximum=schema.LARGEST_PAGE,
                serialize=lambda rows: [delivery_dict(row) for row in rows],
            )
        )


@schema.delivery
class DeliveryView(APIView):
    """One delivery."""

    def get(self, request: ApiRequest, webhook_delivery_id: str) -> Response:
        """Show it with its payload and its attempts."""
        return Response(delivery_detail(find_delivery(request.user, webhook_delivery_id)))


@schema.redeliver
class RedeliverView(APIView):
    """One delivery, once more."""

    def post(self, request: ApiRequest, webhook_delivery_id: str) -> Response:
        """Send it again, under the same id."""
        delivery = find_delivery(request.user, webhook_delivery_id)
        if not deliveries.redeliver(delivery):
            message = "The endpoint of this delivery is disabled or deleted."
            raise ApiError(message, code="webhook_endpoint_disabled")
        delivery.refresh_from_db()
        return Response(delivery_detail(delivery))
