"""How the webhook routes are described."""

from typing import Annotated, NotRequired, TypedDict

from drf_spectacular.utils import OpenApiParameter, extend_schema_view
from msgspec import Meta

from batches.webhooks.models import MAX_NAME, MAX_URL, DeliveryState
from batches.webhooks.payload import EVENT_TYPES
from batches.webhooks.serializers import (
    DeletedWebhookEndpointDict,
    EventTypeName,
    WebhookDeliveryDetailDict,
    WebhookDeliveryListDict,
    WebhookEndpointDict,
    WebhookEndpointListDict,
    WebhookEndpointTestDict,
    WebhookEndpointWithSecretDict,
    WebhookEventTypeListDict,
)
from vbatch_site.openai.schema import AFTER, limit, operation

WEBHOOKS = "Webhooks"
DEFAULT_PAGE = 20
LARGEST_PAGE = 100

_ENDPOINT = "webhook_endpoint_id"
_DELIVERY = "webhook_delivery_id"

_Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
_Url = Annotated[str, Meta(max_length=MAX_URL, pattern="^https://")]
_Kinds = Annotated[list[EventTypeName], Meta(min_length=1)]


class CreateWebhookEndpointDict(TypedDict):
    """An endpoint to make."""

    name: _Name
    url: _Url
    event_types: _Kinds


class UpdateWebhookEndpointDict(TypedDict):
    """What to change."""

    name: NotRequired[_Name]
    url: NotRequired[_Url]
    event_types: NotRequired[_Kinds]


class RotateSecretDict(TypedDict):
    """Whether the secret before this one stays valid for a day."""

    keep_old_secret_active_for_24_hours: NotRequired[bool]


class SendTestDict(TypedDict):
    """The event to send."""

    event_type: EventTypeName


def _describe(name: str, summary: str, *, on: str = _ENDPOINT, **more: object) -> object:
    return operation(name, tag=WEBHOOKS, summary=summary, path=on, refuses=[400], **more)  # type: ignore[arg-type]


endpoints = extend_schema_view(
    post=operation(
        "createWebhookEndpoint",
        tag=WEBHOOKS,
        summary="Create a webhook endpoint",
        body=CreateWebhookEndpointDict,
        answer=WebhookEndpointWithSecretDict,
    ),
    get=operation(
        "listWebhookEndpoints",
        tag=WEBHOOKS,
        summary="List webhook endpoints",
        query=[limit(DEFAULT_PAGE, LARGEST_PAGE), AFTER],
        answer=WebhookEndpointListDict,
        refuses=[400],
    ),
)
endpoint = extend_schema_view(
    get=_describe("retrieveWebhookEndpoint", "Show a webhook endpoint", answer=WebhookEndpointDict),
    post=_describe(
        "updateWebhookEndpoint",
        "Change a webhook endpoint",
        body=UpdateWebhookEndpointDict,
        answer=WebhookEndpointDict,
    ),
    delete=_describe("deleteWebhookEndpoint", "Delete a webhook endpoint", answer=DeletedWebhookEndpointDict),
)
rotate = extend_schema_view(
    post=_describe(
        "rotateWebhookEndpointSecret",
        "Give a webhook endpoint a new secret",
        body=RotateSecretDict,
        answer=WebhookEndpointWithSecretDict,
    )
)
test = extend_schema_view(
    post=_describe(
        "testWebhookEndpoint",
        "Send a made-up event",
        body=SendTestDict,
        answer=WebhookEndpointTestDict,
    )
)
enable = extend_schema_view(
    post=_describe("enableWebhookEndpoint", "Send to a disabled endpoint again", answer=WebhookEndpointDict)
)
event_types = extend_schema_view(
    get=operation("listWebhookEventTypes", tag=WEBHOOKS, summary="List event types", answer=WebhookEventTypeListDict)
)
deliveries = extend_schema_view(
    get=operation(
        "listWebhookDeliveries",
        tag=WEBHOOKS,
        summary="List webhook deliveries",
        query=[
            limit(DEFAULT_PAGE, LARGEST_PAGE),
            AFTER,
            OpenApiParameter(_ENDPOINT, str, description="Of one endpoint."),
            OpenApiParameter("batch_id", str, description="Of one batch."),
            OpenApiParameter("event_type", str, enum=EVENT_TYPES),
            OpenApiParameter("status", str, enum=[state.value for state in DeliveryState]),
        ],
        answer=WebhookDeliveryListDict,
        refuses=[400],
    )
)
delivery = extend_schema_view(
    get=_describe("retrieveWebhookDelivery", "Show a webhook delivery", on=_DELIVERY, answer=WebhookDeliveryDetailDict)
)
redeliver = extend_schema_view(
    post=_describe("redeliverWebhookDelivery", "Send a delivery again", on=_DELIVERY, answer=WebhookDeliveryDetailDict)
)
