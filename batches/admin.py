"""Batches in the admin."""

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from batches import steering
from batches.models import Batch, BatchEvent, Result, Shard, StaleTransition
from batches.webhooks import admin as webhooks
from vbatch_site.admin import ReadOnlyAdmin

# Importing it registers what is in it.
__all__ = ["webhooks"]


@admin.register(Batch)
class BatchAdmin(ReadOnlyAdmin):
    """Batches of all projects."""

    list_display = ["id", "status", "model", "endpoint", "total", "completed", "failed", "project", "created_at"]
    list_filter = ["status", "endpoint", "project"]
    list_select_related = ["project"]
    search_fields = ["id", "model", "input_file_id"]
    actions = ["cancel"]

    @admin.action(description="Cancel", permissions=["operate"])
    def cancel(self, request: HttpRequest, queryset: QuerySet[Batch]) -> None:
        """Cancel those that can still be cancelled."""
        cancelled = 0
        for batch in queryset:
            try:
                steering.cancel(batch, by=str(request.user))
                cancelled += 1
            except StaleTransition:
                self.message_user(request, f"{batch.pk} has ended or is ending.", messages.WARNING)
        self.message_user(request, f"{cancelled} batches are being cancelled.")


@admin.register(BatchEvent)
class BatchEventAdmin(ReadOnlyAdmin):
    """What happened to batches."""

    list_display = ["batch_id", "at", "status", "reason"]
    list_filter = ["status"]
    search_fields = ["batch__id"]


@admin.register(Shard)
class ShardAdmin(ReadOnlyAdmin):
    """Who runs what."""

    list_display = ["batch_id", "index", "model", "state", "count", "done", "epoch", "holder", "lease_expires_at"]
    list_filter = ["state"]
    search_fields = ["batch__id"]
    exclude = ["lines"]


@admin.register(Result)
class ResultAdmin(ReadOnlyAdmin):
    """Finished lines of batches that are not finalized yet."""

    list_display = ["batch_id", "line", "status_code", "error_code", "attempts", "milliseconds", "output_tokens"]
    search_fields = ["batch__id"]
    exclude = ["body"]
