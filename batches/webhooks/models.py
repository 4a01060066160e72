"""Endpoints that want to hear of events, and the deliveries that tell them."""

from datetime import datetime
from enum import StrEnum

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.utils import timezone

from batches.webhooks import signing
from batches.webhooks.payload import EVENT_TYPES
from vbatch_site.models import Project
from vbatch_site.sealing import seal, unseal

MAX_NAME = 256  # characters
MAX_URL = 2048  # characters

_SECRET = "webhook secret"  # noqa: S105 (what the key is for)


class WebhookEndpointQuerySet(models.QuerySet["WebhookEndpoint"]):
    """Questions asked of endpoints."""

    def of_project(self, project: Project) -> "WebhookEndpointQuerySet":
        """Return what the API lists or has listed: not the endpoints that single batches brought along."""
        return self.filter(project=project, batch=None)

    def visible_to(self, project: Project) -> "WebhookEndpointQuerySet":
        """Return what the API lists."""
        return self.listed().filter(project=project)

    def listed(self) -> "WebhookEndpointQuerySet":
        """Return what the API lists, of all projects."""
        return self.filter(batch=None, deleted_at=None)

    def listening(self, project_id: int, batch_id: str, kind: str) -> "WebhookEndpointQuerySet":
        """Return those that are to hear of an event of a batch."""
        mine = Q(project=project_id, batch=None) | Q(batch=batch_id)
        return self.filter(mine, event_types__contains=[kind], deleted_at=None, disabled_at=None)


class WebhookEndpoint(models.Model):
    """A URL that hears of events: of a project's batches, or of the one batch whose request brought it."""

    id = models.CharField(primary_key=True, max_length=40, editable=False)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="webhook_endpoints", db_index=False)
    batch = models.OneToOneField(
        "batches.Batch", on_delete=models.CASCADE, related_name="webhook", null=True, blank=True
    )
    name = models.CharField(max_length=MAX_NAME, blank=True)
    url = models.CharField(max_length=MAX_URL)
    event_types = ArrayField(models.CharField(max_length=40, choices=[(kind, kind) for kind in EVENT_TYPES]))
    sealed_secret = models.TextField(blank=True, editable=False, help_text="Encrypted; empty: not signed.")
    sealed_old_secret = models.TextField(blank=True, editable=False)
    old_secret_until = models.DateTimeField(null=True, blank=True, editable=False)
    secret_hint = models.CharField(max_length=16, blank=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)
    disabled_at = models.DateTimeField(null=True, blank=True, editable=False)
    disabled_reason = models.CharField(max_length=200, blank=True, editable=False)
    consecutive_failures = models.PositiveIntegerField(default=0, editable=False)
    failing_since = models.DateTimeField(null=True, blank=True, editable=False)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = WebhookEndpointQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(
                fields=["project", "-created_at", "-id"], name="endpoints_newest", condition=Q(batch__isnull=True)
            ),
            models.Index(fields=["project"], name="endpoints_of_project"),
            models.Index(fields=["disabled_at"], name="endpoints_disabled", condition=Q(disabled_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return self.name or self.id

    def set_secret(self, secret: str, keep_old_until: datetime | None = None) -> None:
        """Give it a secret, in memory; the one before stays valid until the given time."""
        self.sealed_old_secret = self.sealed_secret if keep_old_until else ""
        self.old_secret_until = keep_old_until
        self.sealed_secret = seal(secret, _SECRET)
        self.secret_hint = signing.hint(secret)

    def secrets(self, now: datetime) -> list[str]:
        """Return the secrets that are valid, the newest first; raise CannotUnseal."""
        sealed = [self.sealed_secret]
        if self.old_secret_until and now < self.old_secret_until:
            sealed.append(self.sealed_old_secret)
        return [unseal(text, _SECRET) for text in sealed if text]


class DeliveryState(StrEnum):
    """Where a delivery is."""

    PENDING = "pending"
    RETRYING = "retrying"
    DELIVERED = "delivered"
    EXHAUSTED = "exhausted"


OPEN = [DeliveryState.PENDING.value, DeliveryState.RETRYING.value]


class WebhookDeliveryQuerySet(models.QuerySet["WebhookDelivery"]):
    """Questions asked of deliveries."""

    def visible_to(self, project: Project) -> "WebhookDeliveryQuerySet":
        """Return the project's deliveries."""
        return self.filter(project=project)

    def due(self, now: datetime) -> "WebhookDeliveryQuerySet":
        """Return those that can be tried now, the longest due first."""
        return self.filter(state__in=OPEN, next_attempt_at__lte=now).order_by("next_attempt_at")

    def dead_letters(self) -> "WebhookDeliveryQuerySet":
        """Return those that nobody will try again unless asked to."""
        return self.filter(state=DeliveryState.EXHAUSTED)


class WebhookDelivery(models.Model):
    """One event on its way to one endpoint. Its id is the same in every attempt: receivers tell repetitions by it."""

    id = models.CharField(primary_key=True, max_length=40, editable=False)
    endpoint = models.ForeignKey(WebhookEndpoint, on_delete=models.CASCADE, related_name="deliveries", db_index=False)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+", db_index=False)
    batch_id = models.CharField(max_length=64, blank=True)
    event_id = models.CharField(max_length=40)
    event_type = models.CharField(max_length=40)
    payload = models.BinaryField()
    host = models.CharField(max_length=255, help_text="So that one slow receiver is not sent everything at once.")
    state = models.CharField(
        max_length=10, choices=[(s.value, s.value) for s in DeliveryState], default=DeliveryState.PENDING.value
    )
    # Raised by each claim, so that what a worker writes after it lost its claim can be told.
    attempts = models.PositiveIntegerField(default=0)
    attempts_before = models.PositiveIntegerField(default=0, help_text="Made before it was last sent again.")
    # While an attempt is under way: when to take the worker for dead.
    next_attempt_at = models.DateTimeField(null=True, blank=True)
    give_up_at = models.DateTimeField()
    last_code = models.PositiveSmallIntegerField(null=True, blank=True)
    last_error = models.CharField(max_length=200, blank=True)
    milliseconds = models.PositiveIntegerField(null=True, blank=True, help_text="What the last attempt took.")
    log = models.JSONField(default=list, help_text="The last attempts: when, headers, status, body, error.")
    created_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)

    objects = WebhookDeliveryQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name_plural = "webhook deliveries"
        indexes = [
            models.Index(fields=["-created_at", "-id"], name="deliveries_newest"),
            models.Index(fields=["project", "-created_at", "-id"], name="deliveries_of_project"),
            models.Index(fields=["endpoint", "-created_at", "-id"], name="deliveries_of_endpoint"),
            models.Index(fields=["batch_id"], name="deliveries_of_batch"),
            models.Index(
                fields=["next_attempt_at"], include=["host"], name="deliveries_due", condition=Q(state__in=OPEN)
            ),
            models.Index(
                fields=["project", "-created_at", "-id"],
                name="deliveries_dead",
                condition=Q(state=DeliveryState.EXHAUSTED.value),
            ),
        ]
        constraints = [
            models.CheckConstraint(
                condition=Q(state__in=[s.value for s in DeliveryState]), name="deliveries_known_state"
            )
        ]

    def __str__(self) -> str:
        return self.id
