"""Turn what happens to a batch into deliveries, in the transaction in which it happens."""

from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from django.utils import timezone

from batches import doorbell
from batches.models import Batch
from batches.serializers import batch_dict
from batches.states import BatchStatus
from batches.webhooks import payload
from batches.webhooks.models import WebhookDelivery, WebhookEndpoint
from batches.webhooks.payload import EventType
from batches.webhooks.retries import GIVE_UP_AFTER
from vbatch_site.openai import ids

_OF_STATE = {
    BatchStatus.COMPLETED: EventType.COMPLETED,
    BatchStatus.FAILED: EventType.FAILED,
    BatchStatus.EXPIRED: EventType.EXPIRED,
    BatchStatus.CANCELLED: EventType.CANCELLED,
}


def on_move(*, batch_id: str, to: BatchStatus, at: datetime, **_: Any) -> None:
    """Announce the end of a batch."""
    if kind := _OF_STATE.get(to):
        announce(batch_id, kind, at)


def on_progress(*, batch_id: str, before: int, after: int, total: int, **_: Any) -> None:
    """Announce that a batch passed a step."""
    if step := payload.step_reached(before, after, total):
        announce(batch_id, EventType.PROGRESS, timezone.now(), progress=step)


def announce(batch_id: str, kind: EventType, at: datetime, **more: Any) -> None:
    """Make a delivery for each endpoint that listens, and ring for them; costs one query when there is none."""
    batch = Batch.objects.get(pk=batch_id)
    endpoints = list(WebhookEndpoint.objects.listening(batch.project_id, batch_id, kind))
    if not endpoints:
        return
    event_id = ids.timed_id("evt", int(at.timestamp()))
    body = payload.body(event_id, kind, int(at.timestamp()), batch_dict(batch), **more)
    WebhookDelivery.objects.bulk_create(
        draft(endpoint, event_id, kind, body, at, batch_id=batch_id) for endpoint in endpoints
    )
    doorbell.ring_deliver()


def draft(
    endpoint: WebhookEndpoint, event_id: str, kind: EventType, body: bytes, at: datetime, batch_id: str = ""
) -> WebhookDelivery:
    """Return an unsaved delivery of an event to an endpoint, due at once."""
    return WebhookDelivery(
        id=ids.timed_id("wh", int(at.timestamp())),
        endpoint=endpoint,
        project_id=endpoint.project_id,
        batch_id=batch_id,
        event_id=event_id,
        event_type=kind,
        payload=body,
        host=(urlsplit(endpoint.url).hostname or "")[:255],
        next_attempt_at=at,
        give_up_at=at + GIVE_UP_AFTER,
        created_at=at,
    )
