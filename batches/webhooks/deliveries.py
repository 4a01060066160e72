"""Claim deliveries that are due, write down what came of an attempt, and send dead letters again.

A claim raises the attempt's number and puts the next attempt off until the worker must be dead: a delivery whose
worker died comes up again by itself, and what a worker writes after it lost its claim names an old number and is
dropped.
"""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import F, Min, Q
from django.db.models.functions import Coalesce

from batches import counting, doorbell
from batches.webhooks import signing
from batches.webhooks.client import Answer
from batches.webhooks.models import OPEN, DeliveryState, WebhookDelivery, WebhookEndpoint
from batches.webhooks.retries import GIVE_UP_AFTER, next_attempt
from vbatch_site import clock
from vbatch_site.models import Project
from vbatch_site.sealing import CannotUnseal

logger = logging.getLogger(__name__)

PER_HOST = 4  # attempts at one host at a time, by one worker: a host that hangs holds up nobody but itself
KEPT_ATTEMPTS = 25  # in a delivery's log; more than the default schedule makes
KEPT_FOR = timedelta(days=30)  # deliveries, counted from their event
USER_AGENT = "vbatch-webhooks/1"

# An endpoint that took nothing for so long, in so many attempts, is disabled: as long as one delivery is tried.
DISABLE_AFTER = GIVE_UP_AFTER
DISABLE_FAILURES = 10

SHOWN_WARNINGS = 20

_LEASE_MARGIN = timedelta(seconds=10)  # beyond an attempt's time-out, before its worker is taken for dead
_PURGE_CHUNK = 5000  # rows deleted at a time


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt to be made now: everything that it needs, so that no query is made while it runs."""

    delivery_id: str
    number: int
    host: str
    url: str
    body: bytes
    headers: dict[str, str]
    error: str = ""  # why it can't be made


def request_headers(delivery: WebhookDelivery, now: datetime) -> dict[str, str]:
    """Return the headers of an attempt made now; raise CannotUnseal."""
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        **signing.headers(delivery.pk, int(now.timestamp()), bytes(delivery.payload), delivery.endpoint.secrets(now)),
    }


def claim(limit: int, in_flight: Mapping[str, int]) -> list[Attempt]:
    """Take up to `limit` deliveries that are due, no host's share above PER_HOST; `in_flight` counts by host."""
    now = clock.ask()
    hosts = Counter(in_flight)
    full = [host for host, count in hosts.items() if count >= PER_HOST]
    taken: list[WebhookDelivery] = []
    with transaction.atomic():
        due = WebhookDelivery.objects.due(now).exclude(host__in=full).select_related("endpoint")
        for delivery in due.select_for_update(skip_locked=True, of=("self",))[:limit]:
            if hosts[delivery.host] < PER_HOST:
                hosts[delivery.host] += 1
                taken.append(delivery)
        WebhookDelivery.objects.filter(pk__in=[delivery.pk for delivery in taken]).update(
            attempts=F("attempts") + 1,
            next_attempt_at=now + timedelta(seconds=settings.VBATCH_WEBHOOK_TIMEOUT) + _LEASE_MARGIN,
        )
    return [_attempt(delivery, now) for delivery in taken]


def _attempt(delivery: WebhookDelivery, now: datetime) -> Attempt:
    headers: dict[str, str] = {}
    error = ""
    if delivery.endpoint.disabled_at or delivery.endpoint.deleted_at:
        error = "the endpoint is disabled or deleted"
    else:
        try:
            headers = request_headers(delivery, now)
        except CannotUnseal as fault:
            error = str(fault)
    return Attempt(
        delivery_id=delivery.pk,
        number=delivery.attempts + 1,
        host=delivery.host,
        url=delivery.endpoint.url,
        body=bytes(delivery.payload),
        headers=headers,
        error=error,
    )


def seconds_to_next() -> float | None:
    """Return how long until a delivery is due, None when there is none."""
    at = WebhookDelivery.objects.filter(state__in=OPEN).aggregate(at=Min("next_attempt_at"))["at"]
    return None if at is None else max(0.0, (at - clock.ask()).total_seconds())


def give_back(attempts: list[Attempt]) -> None:
    """Let others make attempts that were broken off."""
    for attempt in attempts:
        WebhookDelivery.objects.filter(pk=attempt.delivery_id, attempts=attempt.number, state__in=OPEN).update(
            next_attempt_at=clock.ask()
        )


def finish(attempt: Attempt, answer: Answer) -> None:
    """Write down what came of an attempt; nothing when its claim was lost."""
    now = clock.ask()
    with transaction.atomic():
        mine = WebhookDelivery.objects.filter(pk=attempt.delivery_id, attempts=attempt.number, state__in=OPEN)
        delivery = mine.select_for_update(of=("self",)).select_related("endpoint").first()
        if delivery is None:
            return
        again = None
        if not answer.succeeded:
            again = _when_again(delivery, now)
        if answer.succeeded:
            state = DeliveryState.DELIVERED
        else:
            state = DeliveryState.RETRYING if again else DeliveryState.EXHAUSTED
        mine.update(
            state=state,
            next_attempt_at=again,
            ended_at=None if again else now,
            log=[*delivery.log, log_entry(now, attempt.headers, answer)][-KEPT_ATTEMPTS:],
            **outcome(answer),
        )
        hopeless = _note_on_endpoint(delivery.endpoint, now, answer)
        counting.attempt(delivery.project_id, state.value)
    if hopeless:
        disable(
            delivery.endpoint, f"{DISABLE_AFTER.total_seconds() / 3600:g} hours without a success; last: {answer.error}"
        )
    logger.info(
        "webhook attempt made",
        extra={
            "action": f"webhook_{state}",
            "delivery": attempt.delivery_id,
            "endpoint": delivery.endpoint_id,
            "batch": delivery.batch_id,
            "attempt": attempt.number,
            "code": answer.status,
        },
    )


def outcome(answer: Answer) -> dict[str, Any]:
    """Return a delivery's columns that tell of its last attempt."""
    return {"last_code": answer.status or None, "last_error": answer.error, "milliseconds": answer.milliseconds}


def log_entry(at: datetime, headers: dict[str, str], answer: Answer) -> dict[str, Any]:
    """Return what is kept of one attempt."""
    return {
        "at": int(at.timestamp()),
        "headers": headers,
        "status": answer.status or None,
        "milliseconds": answer.milliseconds,
        "error": answer.error,
        # Postgres keeps no U+0000 in JSON.
        "body": answer.body.decode(errors="replace").replace("\0", "\ufffd"),
    }


def _when_again(delivery: WebhookDelivery, now: datetime) -> datetime | None:
    tries = delivery.attempts - delivery.attempts_before
    if tries >= settings.VBATCH_WEBHOOK_MAX_ATTEMPTS or delivery.endpoint.disabled_at or delivery.endpoint.deleted_at:
        return None
    return next_attempt(now, tries, settings.VBATCH_WEBHOOK_RETRY_SECONDS, delivery.give_up_at)


def _note_on_endpoint(endpoint: WebhookEndpoint, now: datetime, answer: Answer) -> bool:
    """Count failures in a row; return whether the endpoint has taken nothing for so long that it is to be disabled."""
    row = WebhookEndpoint.objects.filter(pk=endpoint.pk)
    if answer.succeeded:
        if endpoint.consecutive_failures:
            row.update(consecutive_failures=0, failing_since=None)
        return False
    row.update(consecutive_failures=F("consecutive_failures") + 1, failing_since=Coalesce("failing_since", now))
    hopeless = Q(consecutive_failures__gte=DISABLE_FAILURES, failing_since__lte=now - DISABLE_AFTER)
    return row.filter(hopeless, disabled_at=None).exists()


def disable(endpoint: WebhookEndpoint, reason: str) -> bool:
    """Send an endpoint nothing more; what was on its way becomes dead letters. Return whether it was enabled.

    Call outside a transaction: who holds the endpoint's row must not wait for deliveries, whose holders wait for it.
    """
    enabled = WebhookEndpoint.objects.filter(pk=endpoint.pk, disabled_at=None)
    if not enabled.update(disabled_at=clock.ask(), disabled_reason=reason[:200]):
        return False
    exhaust(endpoint, "the endpoint was disabled")
    logger.warning("webhook endpoint disabled", extra={"action": "webhook_disabled", "endpoint": endpoint.pk})
    return True


def exhaust(endpoint: WebhookEndpoint, why: str) -> None:
    """Make dead letters of what is on its way to an endpoint; what a crash here leaves is found when it is claimed."""
    WebhookDelivery.objects.filter(endpoint=endpoint, state__in=OPEN).update(
        state=DeliveryState.EXHAUSTED, last_error=why, next_attempt_at=None, ended_at=clock.ask()
    )


def enable(endpoint: WebhookEndpoint) -> None:
    """Send to an endpoint again; dead letters stay until somebody sends them again."""
    WebhookEndpoint.objects.filter(pk=endpoint.pk).update(
        disabled_at=None, disabled_reason="", consecutive_failures=0, failing_since=None
    )


def redeliver(delivery: WebhookDelivery) -> bool:
    """Send a delivery again, with the same id, from the first wait on; return False when its endpoint takes nothing."""
    now = clock.ask()
    with transaction.atomic():
        takes = WebhookEndpoint.objects.filter(pk=delivery.endpoint_id, disabled_at=None, deleted_at=None).exists()
        if takes:
            WebhookDelivery.objects.filter(pk=delivery.pk).update(
                state=DeliveryState.PENDING,
                attempts_before=F("attempts"),
                next_attempt_at=now,
                give_up_at=now + GIVE_UP_AFTER,
                ended_at=None,
            )
            doorbell.ring_deliver()
    return takes


def sweep(now: datetime) -> None:
    """Ring for deliveries that are overdue, and delete old ones and what belonged to deleted endpoints."""
    # What nobody has tried is due; one that seems not to be was made by another clock, or before this one was set back.
    untried = WebhookDelivery.objects.filter(state=DeliveryState.PENDING, attempts=F("attempts_before"))
    misdated = untried.filter(next_attempt_at__gt=now).update(next_attempt_at=now)
    if misdated or WebhookDelivery.objects.due(now - _LEASE_MARGIN).exists():
        doorbell.ring_deliver()
    old = WebhookDelivery.objects.filter(created_at__lt=now - KEPT_FOR).exclude(state__in=OPEN)
    WebhookDelivery.objects.filter(pk__in=old.order_by("created_at").values("pk")[:_PURGE_CHUNK]).delete()
    for endpoint in WebhookEndpoint.objects.filter(deleted_at__lt=now - KEPT_FOR)[:100]:
        if not WebhookDelivery.objects.filter(endpoint=endpoint).exists():
            endpoint.delete()


def warnings(project: Project | None = None) -> list[str]:
    """Return what a person should know about webhooks, one sentence each; of one project, or of all."""
    endpoints = WebhookEndpoint.objects.filter(batch=None, deleted_at=None, disabled_at__isnull=False)
    if project is not None:
        endpoints = endpoints.filter(project=project)
    return [
        f"Webhook endpoint {endpoint} ({endpoint.url}) was disabled on {endpoint.disabled_at:%Y-%m-%d %H:%M} UTC: "
        f"{endpoint.disabled_reason}."
        for endpoint in endpoints.order_by("-disabled_at")[:SHOWN_WARNINGS]
    ]
