"""Make, change and try endpoints, from the API, the admin or the console, and read a batch's own."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from batches.models import Batch
from batches.webhooks import deliveries, events, payload, signing
from batches.webhooks.addresses import is_address, is_allowed
from batches.webhooks.client import Answer, Client
from batches.webhooks.models import MAX_NAME, MAX_URL, DeliveryState, WebhookEndpoint
from batches.webhooks.payload import DEFAULT_EVENTS, EVENT_TYPES, EventType
from vbatch_site.models import Project
from vbatch_site.openai import ids
from vbatch_site.openai.errors import ApiError, Json, missing, not_supported, wrong_type
from vbatch_site.sealing import CannotUnseal

OVERLAP = timedelta(hours=24)  # in which the secret before a rotation stays valid, if that is asked for
MAX_ENDPOINTS = 100  # of a project: each hears of every batch
MAX_SECRET = 256  # characters

_BATCH_FIELDS = ("url", "secret", "events", "max_retries", "timeout")
_TEST_BATCH = "batch_test"


@dataclass(frozen=True, slots=True)
class BatchWebhook:
    """What a batch's request says about its own webhook, checked."""

    url: str
    secret: str
    event_types: list[str]


def read_batch_webhook(value: Any) -> BatchWebhook | None:
    """Return the checked `webhook` field of a request for a batch, or raise ApiError."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("webhook", "an object", value)
    for name in value:
        if name not in _BATCH_FIELDS:
            param = f"webhook.{name[:64]}"
            raise ApiError(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if value.get("url") is None:
        raise missing("webhook.url")
    secret = value.get("secret")
    kinds = value.get("events")
    return BatchWebhook(
        url=read_url(value["url"], "webhook.url"),
        secret="" if secret is None else _read_secret(secret),
        # Users of the older server name events without the prefix.
        event_types=list(DEFAULT_EVENTS) if kinds is None else _read_kinds(kinds, "webhook.events", prefix="batch."),
    )


def attach(batch: Batch, wanted: BatchWebhook) -> None:
    """Give a new batch its own endpoint; call inside the transaction that makes the batch."""
    endpoint = WebhookEndpoint(
        id=ids.timed_id("whe", int(batch.created_at.timestamp())),
        project_id=batch.project_id,
        batch=batch,
        url=wanted.url,
        event_types=wanted.event_types,
    )
    if wanted.secret:
        endpoint.set_secret(wanted.secret)
    endpoint.save(force_insert=True)


def create(project: Project, body: Json) -> tuple[WebhookEndpoint, str]:
    """Make an endpoint from a request and return it with its secret, or raise ApiError."""
    for name in ("name", "url", "event_types"):
        if body.get(name) is None:
            raise missing(name)
    fields = _read_fields(body)
    if WebhookEndpoint.objects.visible_to(project).count() >= MAX_ENDPOINTS:
        message = f"A project can have at most {MAX_ENDPOINTS} webhook endpoints."
        raise ApiError(message, code="webhook_endpoint_limit_exceeded")
    now = timezone.now()
    endpoint = WebhookEndpoint(
        id=ids.timed_id("whe", int(now.timestamp())), project=project, created_at=now, updated_at=now, **fields
    )
    secret = signing.new_secret()
    endpoint.set_secret(secret)
    endpoint.save(force_insert=True)
    return endpoint, secret


def update(endpoint: WebhookEndpoint, body: Json) -> None:
    """Change what a request names, or raise ApiError; a change of nothing leaves `updated_at` alone."""
    fields = _read_fields(body)
    changed = {name: value for name, value in fields.items() if getattr(endpoint, name) != value}
    if changed:
        _write(endpoint, **changed, updated_at=timezone.now())


def rotate(endpoint: WebhookEndpoint, body: Json) -> str:
    """Give an endpoint a new secret and return it; the old one dies at once, or after OVERLAP."""
    name = "keep_old_secret_active_for_24_hours"
    keep = body.get(name, False)
    if not isinstance(keep, bool):
        raise wrong_type(name, "a boolean", keep)
    secret = signing.new_secret()
    now = timezone.now()
    with transaction.atomic():
        fresh = WebhookEndpoint.objects.select_for_update().get(pk=endpoint.pk)
        fresh.set_secret(secret, now + OVERLAP if keep else None)
        names = ("sealed_secret", "sealed_old_secret", "old_secret_until", "secret_hint")
        _write(endpoint, **{name: getattr(fresh, name) for name in names}, updated_at=now)
    return secret


def delete(endpoint: WebhookEndpoint) -> None:
    """Send an endpoint nothing more and forget its secrets; its deliveries stay to be seen."""
    _write(endpoint, deleted_at=timezone.now(), sealed_secret="", sealed_old_secret="", old_secret_until=None)
    deliveries.exhaust(endpoint, "the endpoint was deleted")


def send_test(endpoint: WebhookEndpoint, kind: EventType) -> Answer:
    """Send a made-up event now and return what came of it; it is kept as a delivery, and not tried again."""
    now = timezone.now()
    at = int(now.timestamp())
    event_id = ids.timed_id("evt", at)
    batch: Json = {
        "id": _TEST_BATCH,
        "status": "in_progress" if kind == EventType.PROGRESS else kind.removeprefix("batch."),
        "output_file_id": None,
        "error_file_id": None,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "metadata": None,
    }
    body = payload.body(event_id, kind, at, batch)
    delivery = events.draft(endpoint, event_id, kind, body, now, batch_id=_TEST_BATCH)
    try:
        headers = deliveries.request_headers(delivery, now)
    except CannotUnseal as fault:
        headers, answer = {}, Answer(0, 0, error=str(fault))
    else:
        answer = asyncio.run(_send(endpoint.url, body, headers))
    for name, value in deliveries.outcome(answer).items():
        setattr(delivery, name, value)
    delivery.state = DeliveryState.DELIVERED if answer.succeeded else DeliveryState.EXHAUSTED
    delivery.attempts = 1
    delivery.next_attempt_at = None
    delivery.ended_at = timezone.now()
    delivery.log = [deliveries.log_entry(now, headers, answer)]
    delivery.save(force_insert=True)
    return answer


async def _send(url: str, body: bytes, headers: dict[str, str]) -> Answer:
    allow_private = settings.VBATCH_WEBHOOK_ALLOW_PRIVATE
    async with Client(settings.VBATCH_WEBHOOK_TIMEOUT, allow_private=allow_private) as client:
        return await client.post(url, body, headers)


def _write(endpoint: WebhookEndpoint, **fields: Any) -> None:
    """Write only these: a courier counts failures in the same row."""
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(**fields)
    for name, value in fields.items():
        setattr(endpoint, name, value)


def _read_fields(body: Json) -> Json:
    """Return the checked fields that a request names."""
    fields: Json = {}
    if "name" in body:
        fields["name"] = _read_text(body["name"], "name", MAX_NAME)
    if "url" in body:
        fields["url"] = read_url(body["url"], "url")
    if "event_types" in body:
        fields["event_types"] = _read_kinds(body["event_types"], "event_types")
    return fields


def _read_text(value: Any, param: str, longest: int) -> str:
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    if len(value) > longest:
        message = (
            f"Invalid '{param}': string too long. Expected a string with maximum length {longest}, "
            f"but got a string with length {len(value)} instead."
        )
        raise ApiError(message, param=param, code="string_above_max_length")
    if not value.strip() or not value.isprintable():
        raise ApiError(f"Invalid '{param}': expected printable text.", param=param, code="invalid_value")
    return value


def read_url(value: Any, param: str) -> str:
    """Return a checked URL; what its name resolves to is looked at when something is sent there."""
    text = _read_text(value, param, MAX_URL)

    def refused(why: str) -> ApiError:
        return ApiError(f"Invalid '{param}': {why}.", param=param, code="invalid_url")

    allow_private = settings.VBATCH_WEBHOOK_ALLOW_PRIVATE
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise refused("this is not a URL") from None
    if parts.scheme != "https" and not (allow_private and parts.scheme == "http"):
        raise refused("expected a URL that begins with 'https://'")
    if not host or port == 0 or any(character.isspace() or character in '\\"<>^`{|}' for character in text):
        raise refused("this is not a URL")
    if parts.username is not None or parts.password is not None:
        raise refused("a URL must not carry a user or a password; use the signature to tell who calls")
    own = host.rstrip(".").lower()
    if (is_address(host) and not is_allowed(host, allow_private=allow_private)) or (
        (own == "localhost" or own.endswith(".localhost")) and not allow_private
    ):
        raise refused("private addresses and this machine can't be called")
    return text


def _read_kinds(value: Any, param: str, prefix: str = "") -> list[str]:
    if not isinstance(value, list):
        raise wrong_type(param, "an array", value)
    if not value:
        raise ApiError(f"Invalid '{param}': empty array.", param=param, code="empty_array")
    kinds: list[str] = []
    for i, kind in enumerate(value):
        if not isinstance(kind, str):
            raise wrong_type(f"{param}[{i}]", "a string", kind)
        full = prefix + kind if prefix and not kind.startswith(prefix) else kind
        if full not in EVENT_TYPES:
            raise not_supported(f"{param}[{i}]", kind[:64], EVENT_TYPES)
        if full not in kinds:
            kinds.append(full)
    return kinds


def read_kind(body: Json) -> EventType:
    """Return the type of event that a request names, or raise ApiError."""
    kind = body.get("event_type")
    if kind is None:
        raise missing("event_type")
    return EventType(_read_kinds([kind], "event_type")[0])


def _read_secret(value: Any) -> str:
    param = "webhook.secret"
    secret = _read_text(value, param, MAX_SECRET)
    try:
        signing.key_of(secret)
    except ValueError:
        message = f"Invalid '{param}': expected base64 after '{signing.PREFIX}'."
        raise ApiError(message, param=param, code="invalid_value") from None
    return secret
