"""A batch as pages show it: words, tones, what may be done to it now, and why not."""

from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest
from django.shortcuts import get_object_or_404
from django.utils import timezone

from batches.models import Batch, BatchEvent
from batches.states import ACTIVE, COLOURS, STEERABLE, TERMINAL, BatchStatus, EventKind
from vbatch_site.console.roles import Right, may

# Of the window's time; less than this is left: the page says so in amber.
_LATE_SHARE = 0.2

CANCELLABLE = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)

# What a person told a batch, in words.
_TOLD = {
    EventKind.PAUSE: "paused",
    EventKind.RESUME: "resumed",
    EventKind.PRIORITY: "priority",
    EventKind.RETRY: "retried",
}

ENDS = ("completed_at", "failed_at", "expired_at", "cancelled_at")


@dataclass(frozen=True, slots=True)
class Action:
    """Something that a person may ask of a batch; one that is not possible now says why."""

    name: str
    label: str
    refusal: str = ""
    question: str = ""
    warning: str = ""
    danger: bool = False


def tone(batch: Batch) -> str:
    """Return the colour of a batch's state."""
    if batch.paused_at is not None and batch.status in STEERABLE:
        return "warning"
    return COLOURS[BatchStatus(batch.status)]


def word(batch: Batch) -> str:
    """Return a batch's state in words."""
    paused = batch.paused_at is not None and batch.status in STEERABLE
    return f"{batch.status}, paused" if paused else batch.status


def event_word(event: BatchEvent) -> str:
    """Return what happened to a batch, in a word."""
    kind = EventKind(event.kind)
    return event.status if kind == EventKind.STATUS else _TOLD.get(kind, kind.value)


def event_tone(event: BatchEvent) -> str:
    """Return the colour of what happened to a batch."""
    return COLOURS[BatchStatus(event.status)] if event.kind == EventKind.STATUS else "none"


def description(batch: Batch) -> str:
    """Return what its owner says it is: the metadata's description, or all of it."""
    metadata = batch.metadata or {}
    for key in ("description", "name", "title"):
        if metadata.get(key):
            return str(metadata[key])
    return ", ".join(f"{key}={value}" for key, value in metadata.items())


def seconds(batch: Batch) -> float | None:
    """Return how long a batch ran, or has been running; None when it never did."""
    if batch.in_progress_at is None:
        return None
    end = next((at for name in ENDS if (at := getattr(batch, name)) is not None), timezone.now())
    return float((end - batch.in_progress_at).total_seconds())


def decorate(batch: Batch) -> Batch:
    """Add to a batch what its row and its page show."""
    shown: Any = batch
    shown.tone, shown.word, shown.about, shown.seconds = tone(batch), word(batch), description(batch), seconds(batch)
    shown.remaining = max(batch.total - batch.completed - batch.failed, 0)
    shown.active = batch.status in ACTIVE
    # What a tick in the list is for.
    shown.may = "cancel" if batch.status in CANCELLABLE else "retry" if not retry_refusal(batch) else ""
    window = (batch.expires_at - batch.created_at).total_seconds()
    left = (batch.expires_at - timezone.now()).total_seconds()
    shown.late = shown.active and left < window * _LATE_SHARE
    return batch


def retry_refusal(batch: Batch) -> str:
    """Return why a batch's failed lines can't run again in a new batch, empty where they can."""
    if batch.status not in TERMINAL:
        return "It has not ended."
    if batch.status == BatchStatus.FAILED:
        return "Its input is not valid: upload a corrected file."
    return "" if batch.failed or batch.status != BatchStatus.COMPLETED else "No line of it failed."


def actions(batch: Batch, user: Any) -> list[Action]:
    """Return what a user may ask of a batch; nothing that the user's role forbids."""
    if not may(user, Right.OPERATE):
        return []
    ended = f"It is {batch.status.replace('_', ' ')}."
    left = max(batch.total - batch.completed - batch.failed, 0)
    steerable = batch.status in STEERABLE
    found = []
    if batch.paused_at is not None and steerable:
        found.append(Action("resume", "Resume"))
    elif batch.status not in TERMINAL:
        found.append(Action("pause", "Pause", "" if steerable else ended))
    if batch.status in TERMINAL:
        question = "Run the lines that have no answer again?"
        warning = "A new batch runs the lines that failed or never ran, and its files hold all answers of both."
        found.append(Action("retry", "Retry failed", retry_refusal(batch), question, warning))
    question = f"Cancel this batch with {left} lines left?"
    warning = "Finished answers are kept and stay downloadable. The lines left do not run; this can't be undone."
    found.append(
        Action("cancel", "Cancel", "" if batch.status in CANCELLABLE else ended, question, warning, danger=True)
    )
    return found


def find(batch_id: str) -> Batch:
    """Return a batch of any project, or raise the 404."""
    return get_object_or_404(Batch.objects.select_related("project", "api_key"), pk=batch_id.replace("\0", ""))


def frame(request: HttpRequest, batch: Batch, tab: str) -> dict[str, Any]:
    """Return what the head of each of a batch's pages shows."""
    return {"title": batch.pk, "batch": batch, "tab": tab, "actions": actions(batch, request.user)}
