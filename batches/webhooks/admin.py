"""Webhook endpoints and deliveries in the admin."""

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest

from batches.webhooks import deliveries, endpoints
from batches.webhooks.models import WebhookDelivery, WebhookEndpoint
from batches.webhooks.payload import EventType
from vbatch_site.admin import ReadOnlyAdmin

_OFFERED = 100  # endpoints in the filter of deliveries


class OfEndpoint(admin.SimpleListFilter):
    """Deliveries of one endpoint. Not Django's own filter: that looks through all deliveries for what to offer."""

    title = "endpoint"
    parameter_name = "endpoint"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Offer the newest endpoints of projects."""
        rows = WebhookEndpoint.objects.listed().select_related("project")[:_OFFERED]
        return [(endpoint.pk, f"{endpoint} ({endpoint.project})") for endpoint in rows]

    def queryset(self, request: HttpRequest, queryset: QuerySet[WebhookDelivery]) -> QuerySet[WebhookDelivery]:
        """Keep those of the chosen one."""
        return queryset.filter(endpoint=self.value()) if self.value() else queryset


@admin.register(WebhookEndpoint)
class WebhookEndpointAdmin(ReadOnlyAdmin):
    """Who hears of events: endpoints of projects, and those that single batches brought along."""

    list_display = [
        "id",
        "name",
        "url",
        "project",
        "event_types",
        "consecutive_failures",
        "failing_since",
        "disabled_at",
        "disabled_reason",
        "created_at",
    ]
    list_filter = ["project", ("disabled_at", admin.EmptyFieldListFilter), ("deleted_at", admin.EmptyFieldListFilter)]
    list_select_related = ["project"]
    search_fields = ["id", "name", "url", "batch__id"]
    actions = ["disable", "enable", "send_test"]
    exclude = ["sealed_secret", "sealed_old_secret"]

    @admin.action(description="Disable", permissions=["administer"])
    def disable(self, request: HttpRequest, queryset: QuerySet[WebhookEndpoint]) -> None:
        """Send to them no more."""
        count = sum(deliveries.disable(endpoint, f"by {request.user}") for endpoint in queryset)
        self.message_user(request, f"{count} endpoints disabled.")

    @admin.action(description="Enable", permissions=["administer"])
    def enable(self, request: HttpRequest, queryset: QuerySet[WebhookEndpoint]) -> None:
        """Send to them again."""
        for endpoint in queryset:
            deliveries.enable(endpoint)
        self.message_user(request, "Enabled. Dead letters stay until they are sent again.")

    @admin.action(description="Send a test", permissions=["administer"])
    def send_test(self, request: HttpRequest, queryset: QuerySet[WebhookEndpoint]) -> None:
        """Send a made-up event to each, and show what came back."""
        for endpoint in queryset.filter(deleted_at=None)[:10]:
            kind = EventType(endpoint.event_types[0])
            answer = endpoints.send_test(endpoint, kind)
            level = messages.SUCCESS if answer.succeeded else messages.ERROR
            self.message_user(request, f"{endpoint}: {answer.error or answer.status}", level)


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(ReadOnlyAdmin):
    """What was sent, what is on its way, and dead letters."""

    list_display = [
        "id",
        "endpoint",
        "event_type",
        "batch_id",
        "state",
        "attempts",
        "last_code",
        "last_error",
        "milliseconds",
        "next_attempt_at",
        "created_at",
    ]
    list_filter = ["state", "event_type", OfEndpoint]
    list_select_related = ["endpoint"]
    search_fields = ["id", "event_id", "batch_id", "endpoint__id"]
    actions = ["redeliver"]
    exclude = ["payload", "host"]
    readonly_fields = ["body"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[WebhookDelivery]:
        """Leave out what a list does not show."""
        return WebhookDelivery.objects.defer("payload", "log")

    @admin.display
    def body(self, delivery: WebhookDelivery) -> str:
        """Return what is sent."""
        return bytes(delivery.payload).decode()

    @admin.action(description="Send again", permissions=["administer"])
    def redeliver(self, request: HttpRequest, queryset: QuerySet[WebhookDelivery]) -> None:
        """Send them again, under the same ids."""
        rung = [deliveries.redeliver(delivery) for delivery in queryset]
        self.message_user(request, f"{sum(rung)} deliveries are being sent again.")
        if not all(rung):
            self.message_user(
                request, f"{rung.count(False)} are for endpoints that are disabled or deleted.", messages.WARNING
            )
