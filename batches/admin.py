"""Batches in the admin."""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.utils import display_for_label

from batches import retrying, steering
from batches.models import (
    Batch,
    BatchEvent,
    IntakePause,
    Provenance,
    Result,
    ResultIndex,
    Sample,
    Shard,
    StaleTransition,
)
from batches.states import COLOURS, BatchStatus
from batches.validation import ENDPOINTS
from batches.webhooks import admin as webhooks
from vbatch_site.admin import ReadOnlyAdmin
from vbatch_site.console.pages import error_text
from vbatch_site.openai.errors import ApiError

# Importing it registers what is in it.
__all__ = ["webhooks"]


class OfEndpoint(admin.SimpleListFilter):
    """Batches of one endpoint. Not Django's own filter: that looks through all batches for what to offer."""

    title = "endpoint"
    parameter_name = "endpoint"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Offer what a batch may ask for."""
        return [(name, name) for name in ENDPOINTS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Batch]) -> QuerySet[Batch]:
        """Keep those of the chosen one."""
        return queryset.filter(endpoint=self.value()) if self.value() else queryset


@cache
def _label(status: str) -> SafeString:
    """Return a state in its colour, rendered once; a list has few different ones."""
    colours = {known.value: COLOURS[known] for known in BatchStatus}
    label = display_for_label((status, status.replace("_", " ")), "-", colours)
    return cast(SafeString, label)


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin):
    """Batches of all projects."""

    unread = ("errors", "chosen_lines", "metadata")

    list_display = ["id", "state", "lines", "model", "project", "created_at", "page"]
    list_filter = ["status", OfEndpoint, "project"]
    list_select_related = ["project"]
    # Whole values and beginnings: a text somewhere in a million rows is not found in time.
    search_fields = ["id__startswith", "model__exact", "input_file_id__exact"]
    search_help_text = "The beginning of an id, a model's name, or an input file's id"
    actions = ["cancel", "retry", "pause", "resume"]

    @display(description="Status", ordering="status")  # type: ignore[untyped-decorator]  # Unfold ships no types
    def state(self, obj: Batch) -> SafeString:
        """Show the state in its colour, without the underscore."""
        return _label(obj.status)

    @display(description="Lines")  # type: ignore[untyped-decorator]
    def lines(self, obj: Batch) -> str:
        """Show how many of its lines are done, and how many failed."""
        parts = [
            f"{obj.completed + obj.failed:,} of {obj.total:,}",
            *([f"{obj.failed:,} failed"] if obj.failed else []),
        ]
        # Only between the two may a line break.
        return " ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)

    @display(description="Console and files")  # type: ignore[untyped-decorator]
    def page(self, obj: Batch) -> str:
        """Lead to the page with results, and to the downloads."""
        links = [(reverse("console:batch", args=[obj.pk]), "Open")]
        files = [(obj.output_file_id, "Output"), (obj.error_file_id, "Errors")]
        links += [(reverse("console:download", args=[pk]), name) for pk, name in files if pk]
        return format_html_join(" ", '<a href="{}">{}</a>', links)

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        """Cancel those that can still be cancelled."""
        self._steer(request, queryset, steering.cancel, "batches are being cancelled.")

    @admin.action(description="Pause", permissions=["operate"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        """Pause those that run."""
        self._steer(request, queryset, steering.pause, "batches are paused.")

    @admin.action(description="Resume", permissions=["operate"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        """Let paused ones go on."""
        self._steer(request, queryset, steering.resume, "batches go on.")

    @admin.action(description="Retry what failed", permissions=["operate"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        """Start a new batch for each, over the lines that failed."""
        made = 0
        for batch in queryset:
            try:
                retrying.retry(batch, None, str(request.user))
                made += 1
            except StaleTransition:
                self.message_user(request, f"{batch.pk} is {batch.status.replace('_', ' ')}.", messages.WARNING)
            except ApiError as error:
                self.message_user(request, f"{batch.pk}: {error_text(error)}", messages.WARNING)
        self.message_user(request, f"{made} batches run the lines that failed.")

    def _steer(
        self, request: HttpRequest, queryset: QuerySet[Batch], do: Callable[[Batch, str], None], done: str
    ) -> None:
        steered = 0
        for batch in queryset:
            try:
                do(batch, str(request.user))
                steered += 1
            except StaleTransition:
                self.message_user(request, f"{batch.pk} has ended or is ending.", messages.WARNING)
        self.message_user(request, f"{steered} {done}")


@admin.register(BatchEvent)
class BatchEventAdmin(ReadOnlyAdmin):
    """What happened to batches."""

    ordering = ["-id"]
    list_display = ["batch_id", "at", "kind", "status", "reason"]
    list_filter = ["kind", "status"]
    search_fields = ["batch_id__exact"]
    search_help_text = "The id of a batch"


@admin.register(Shard)
class ShardAdmin(ReadOnlyAdmin):
    """Who runs what."""

    unread = ("lines",)
    ordering = ["-id"]
    list_display = ["batch_id", "index", "model", "state", "count", "done", "epoch", "holder", "lease_expires_at"]
    list_filter = ["state"]
    search_fields = ["batch_id__exact"]
    search_help_text = "The id of a batch"
    exclude = ["lines"]


@admin.register(Result)
class ResultAdmin(ReadOnlyAdmin):
    """Finished lines of batches that are not finalized yet."""

    unread = ("body",)
    ordering = ["-id"]
    list_display = ["batch_id", "line", "status_code", "error_code", "attempts", "milliseconds", "output_tokens"]
    search_fields = ["batch_id__exact"]
    search_help_text = "The id of a batch"
    exclude = ["body"]


@admin.register(Sample)
class SampleAdmin(ReadOnlyAdmin):
    """What was committed in every ten seconds."""

    ordering = ["-id"]
    list_display = ["batch_id", "model", "at", "lines", "failed", "input_tokens", "cached_tokens", "output_tokens"]
    search_fields = ["batch_id__exact"]
    search_help_text = "The id of a batch"


@admin.register(Provenance)
class ProvenanceAdmin(ReadOnlyAdmin):
    """What answered."""

    list_display = ["id", "facts", "created_at"]


@admin.register(ResultIndex)
class ResultIndexAdmin(ReadOnlyAdmin):
    """Where the lines of ended batches lie in their files."""

    unread = ("entries",)
    ordering = ["-expires_at"]
    list_display = ["batch_id", "expires_at"]
    search_fields = ["batch_id__exact"]
    search_help_text = "The id of a batch"
    exclude = ["entries"]


@admin.register(IntakePause)
class IntakePauseAdmin(ReadOnlyAdmin):
    """Since when no new batch is taken; switched on the console's page System."""

    list_display = ["since", "by"]
