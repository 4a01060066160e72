"""One batch: how far it is, what happened to it, and what may be done to it now."""

from collections import Counter
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse

from batches import retrying, steering
from batches.console import pace
from batches.console.hooks import told
from batches.console.results import Lines
from batches.console.shown import decorate, event_tone, event_word, find, frame
from batches.models import Batch, BatchEvent, StaleTransition
from batches.serializers import batch_dicts
from batches.webhooks.models import WebhookDelivery
from files.models import File
from vbatch_site.console.pages import ACTIVE_SECONDS, back, complain, error_text, page, say, show
from vbatch_site.console.roles import Right, may
from vbatch_site.openai.errors import ApiError

_ERRORS_SHOWN = 200
_SHARDS_SHOWN = 50
_EVENTS_SHOWN = 200
_DELIVERIES_SHOWN = 20


@page()
def detail(request: HttpRequest, batch_id: str) -> HttpResponse:
    """Show a batch."""
    batch = decorate(find(batch_id))
    code, message = batch.why_not()
    events = list(batch.events.order_by("id")[:_EVENTS_SHOWN])
    pace.add([batch])
    context = {
        **frame(request, batch, "overview"),
        "timeline": _timeline(events),
        "plots": pace.plots(batch, events),
        "files": _files(batch),
        "shards": _shards(batch),
        "shard_states": dict(Counter(batch.shards.values_list("state", flat=True))) if not batch.purged_at else {},
        "errors": ((batch.errors or {}).get("data") or [])[:_ERRORS_SHOWN],
        "error_total": len((batch.errors or {}).get("data") or []),
        "why_not": f"{code}: {message}" if code else "",
        "provenance": getattr(batch, "facts", []),
        "deliveries": _deliveries(batch),
        "finish_reasons": Lines(batch).reasons() if batch.purged_at else {},
        "seconds": ACTIVE_SECONDS,
    }
    return show(request, "console/batches/detail.html", context, part="console/batches/_detail.html")


def _timeline(events: list[BatchEvent]) -> list[dict[str, Any]]:
    """Return the journal with the time that passed before each line of it."""
    found: list[dict[str, Any]] = []
    before = None
    for event in events:
        found.append(
            {
                "at": event.at,
                "gap": (event.at - before).total_seconds() if before else None,
                "word": event_word(event),
                "tone": event_tone(event),
                "reason": event.reason,
            }
        )
        before = event.at
    return found


def _files(batch: Batch) -> list[dict[str, Any]]:
    """Return the batch's files; one that is gone has its id and no more."""
    wanted = [("Input", batch.input_file_id), ("Output", batch.output_file_id), ("Errors", batch.error_file_id)]
    found = File.objects.filter(pk__in=[pk for _, pk in wanted if pk]).in_bulk()
    return [{"role": role, "id": pk, "file": found.get(pk)} for role, pk in wanted if pk]


def _shards(batch: Batch) -> Any:
    """Return who runs or ran parts of the batch: its leases, those taken more than once first."""
    held = batch.shards.exclude(holder="").defer("lines")
    return held.order_by("-epoch", "index")[:_SHARDS_SHOWN]


def _deliveries(batch: Batch) -> list[WebhookDelivery]:
    return [told(row) for row in WebhookDelivery.objects.filter(batch_id=batch.pk)[:_DELIVERIES_SHOWN]]


@page()
def raw(request: HttpRequest, batch_id: str) -> HttpResponse:
    """Show the batch as the API sends it."""
    batch = decorate(find(batch_id))
    context = {**frame(request, batch, "raw"), "object": batch_dicts([batch])[0]}
    return show(request, "console/batches/raw.html", context)


@page(Right.OPERATE, methods=("POST",))
def act(request: HttpRequest, batch_id: str, action: str) -> HttpResponseBase:
    """Do what a person asks, through the functions that the API calls."""
    batch = find(batch_id)
    if action not in ("cancel", "pause", "resume", "retry", "prioritize") or not may(request.user, Right.OPERATE):
        raise Http404
    by = str(request.user)
    to = reverse("console:batch", args=[batch.pk])
    try:
        match action:
            case "cancel":
                steering.cancel(batch, by=by)
                say(request, "The batch is being cancelled; finished answers are kept.")
            case "pause":
                steering.pause(batch, by=by)
                say(request, "The batch is paused; its completion window goes on.")
            case "resume":
                steering.resume(batch, by=by)
                say(request, "The batch goes on.")
            case "prioritize":
                steering.prioritize(batch, _priority(request), by=by)
                say(request, f"The batch has priority {batch.priority}.")
            case "retry":
                again = retrying.retry(batch, None, by)
                to = reverse("console:batch", args=[again.pk])
                say(request, "The lines that failed run again.")
    except StaleTransition:
        batch.refresh_from_db()
        complain(request, f"Too late: the batch is {batch.status.replace('_', ' ')}.")
    except ApiError as error:
        complain(request, error_text(error))
    return back(request, to)


def _priority(request: HttpRequest) -> int:
    try:
        wanted = int(request.POST.get("priority", ""))
    except ValueError:
        wanted = 1000
    if not -100 <= wanted <= 100:
        raise ApiError("A priority is a whole number from -100 to 100.")
    return wanted
