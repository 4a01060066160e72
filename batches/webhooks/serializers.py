"""Endpoints and deliveries on the wire."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import Meta

from batches.webhooks.models import DeliveryState, WebhookDelivery, WebhookEndpoint
from batches.webhooks.payload import EVENT_TYPES
from vbatch_site.openai.schema import PageDict, UnixTime

EventTypeName = Annotated[str, Meta(extra_json_schema={"enum": EVENT_TYPES})]


class EndpointTroubleDict(TypedDict):
    """Why an endpoint is sent nothing."""

    disabled_at: UnixTime
    disabled_reason: str


class WebhookEndpointDict(TypedDict):
    """OpenAI's endpoint object (contract.md 8.4); `vbatch` is there only when the endpoint is disabled."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: UnixTime
    updated_at: UnixTime | None
    name: str
    url: str
    event_types: list[EventTypeName]
    signing_secret_hint: str | None
    vbatch: NotRequired[EndpointTroubleDict]


class WebhookEndpointWithSecretDict(WebhookEndpointDict):
    """The same with its secret, as it is shown once."""

    signing_secret: str


class WebhookEndpointListDict(PageDict):
    """One page of endpoints."""

    data: list[WebhookEndpointDict]


class DeletedWebhookEndpointDict(TypedDict):
    """An endpoint that is gone."""

    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class WebhookEndpointTestDict(TypedDict):
    """What a receiver answered to a test."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: EventTypeName
    status_code: int
    success: Literal[True]


class WebhookEventTypeListDict(TypedDict):
    """What can be subscribed to."""

    object: Literal["list"]
    data: list[EventTypeName]


class WebhookAttemptDict(TypedDict):
    """One attempt at a delivery."""

    at: UnixTime
    headers: dict[str, str]
    status: int | None
    milliseconds: int
    error: str
    body: Annotated[str, Meta(description="How the answer begins.")]


class WebhookDeliveryDict(TypedDict):
    """One event on its way to one endpoint; an extension of vbatch."""

    id: Annotated[str, Meta(description="What attempts send as `webhook-id`.")]
    object: Literal["webhook_delivery"]
    created_at: UnixTime
    webhook_endpoint_id: str
    batch_id: str | None
    event_id: str
    event_type: EventTypeName
    url: str
    status: Annotated[str, Meta(extra_json_schema={"enum": [state.value for state in DeliveryState]})]
    attempts: int
    last_status_code: int | None
    last_error: str | None
    milliseconds: int | None
    next_attempt_at: UnixTime | None


class WebhookDeliveryDetailDict(WebhookDeliveryDict):
    """The same with what was sent and what came back."""

    payload: dict[str, Any]
    log: list[WebhookAttemptDict]


class WebhookDeliveryListDict(PageDict):
    """One page of deliveries."""

    data: list[WebhookDeliveryDict]


def _unix(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def endpoint_dict(endpoint: WebhookEndpoint) -> WebhookEndpointDict:
    """Return OpenAI's endpoint object."""
    found: WebhookEndpointDict = {
        "id": endpoint.pk,
        "object": "webhook_endpoint",
        "created_at": int(endpoint.created_at.timestamp()),
        "updated_at": _unix(endpoint.updated_at),
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "signing_secret_hint": endpoint.secret_hint or None,
    }
    if endpoint.disabled_at:
        found["vbatch"] = {
            "disabled_at": int(endpoint.disabled_at.timestamp()),
            "disabled_reason": endpoint.disabled_reason,
        }
    return found


def endpoint_with_secret(endpoint: WebhookEndpoint, secret: str) -> WebhookEndpointWithSecretDict:
    """Return the endpoint object with the secret that its owner sees this once."""
    return {**endpoint_dict(endpoint), "signing_secret": secret}


def delivery_dict(delivery: WebhookDelivery) -> WebhookDeliveryDict:
    """Return a delivery; its endpoint must be loaded."""
    return {
        "id": delivery.pk,
        "object": "webhook_delivery",
        "created_at": int(delivery.created_at.timestamp()),
        "webhook_endpoint_id": delivery.endpoint_id,
        "batch_id": delivery.batch_id or None,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "url": delivery.endpoint.url,
        "status": delivery.state,
        "attempts": delivery.attempts,
        "last_status_code": delivery.last_code,
        "last_error": delivery.last_error or None,
        "milliseconds": delivery.milliseconds,
        "next_attempt_at": _unix(delivery.next_attempt_at),
    }


def delivery_detail(delivery: WebhookDelivery) -> WebhookDeliveryDetailDict:
    """Return a delivery with its payload and its attempts."""
    return {**delivery_dict(delivery), "payload": json.loads(bytes(delivery.payload)), "log": delivery.log}
