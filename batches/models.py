"""Batches, their shards and results, and the journal of what happened to them."""

import logging
from datetime import datetime, timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import Q
from django.utils import timezone

from batches import counting
from batches.signals import moved
from batches.states import ACTIVE, SOURCES, TERMINAL, BatchStatus, EventKind, ShardState, timestamp_field
from batches.webhooks.models import WebhookDelivery as WebhookDelivery  # Django looks for a room's models here
from batches.webhooks.models import WebhookEndpoint as WebhookEndpoint
from vbatch_site import words
from vbatch_site.models import ApiKey, Project
from vbatch_site.openai import ids

logger = logging.getLogger(__name__)

LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100


class StaleTransition(Exception):
    """The batch was no longer in a state that the move starts from."""


class Provenance(models.Model):
    """What answered: one row for each different set of facts about an engine."""

    id = models.CharField(primary_key=True, max_length=32, editable=False, help_text="A digest of the facts.")
    facts = models.JSONField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        verbose_name_plural = "provenance"

    def __str__(self) -> str:
        return self.id


class OnInvalidLine(models.TextChoices):
    """What becomes of a batch with a bad line: it fails, or the line fails alone."""

    FAIL = "fail"
    SKIP = "skip"


class BatchQuerySet(models.QuerySet["Batch"]):
    """Questions asked of batches."""

    def visible_to(self, project: Project) -> "BatchQuerySet":
        """Return the project's batches."""
        return self.filter(project=project)

    def overdue(self, now: datetime) -> "BatchQuerySet":
        """Return batches whose window passed before their work was done."""
        return self.filter(status__in=[BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS], expires_at__lte=now)


class Batch(models.Model):
    """An object of the Batch API. Its status is moved by `move` and by nothing else."""

    id = models.CharField(primary_key=True, max_length=40, editable=False)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="batches")
    status = models.CharField(
        max_length=12, choices=[(s.value, s.value) for s in BatchStatus], default=BatchStatus.VALIDATING, editable=False
    )
    endpoint = models.CharField(max_length=64)
    input_file_id = models.CharField(max_length=64)
    completion_window = models.CharField(max_length=16)
    metadata = models.JSONField(null=True, blank=True)
    output_life_seconds = models.PositiveIntegerField(null=True, blank=True)
    default_model = models.CharField(max_length=200, blank=True, help_text="For lines that name no model.")
    priority = models.SmallIntegerField(default=0, help_text="-100 to 100; higher goes first.")
    paused_at = models.DateTimeField(null=True, blank=True, editable=False)
    api_key = models.ForeignKey(
        ApiKey, on_delete=models.SET_NULL, related_name="batches", null=True, blank=True, db_index=False, editable=False
    )
    created_by = models.CharField(
        max_length=150,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="The person, where it was no key.",
    )

    allow_mixed_models = models.BooleanField(default=False, editable=False)
    on_invalid_line = models.CharField(
        max_length=4, choices=OnInvalidLine.choices, default=OnInvalidLine.FAIL, editable=False
    )
    continue_from = models.CharField(
        max_length=40,
        blank=True,
        editable=False,
        help_text="The batch whose answers are taken over.",
    )
    chosen_lines = models.JSONField(
        null=True, editable=False, help_text="The custom_ids that run; others keep what they got before."
    )

    model = models.CharField(  # noqa: DJ001 (null on the wire until validated, and with several)
        max_length=200, null=True, blank=True
    )
    errors = models.JSONField(null=True, blank=True)
    abort_code = models.CharField(max_length=64, blank=True, help_text="Why lines that never ran did not.")
    abort_message = models.TextField(blank=True)
    output_file_id = models.CharField(max_length=64, null=True, blank=True)  # noqa: DJ001 (null on the wire)
    error_file_id = models.CharField(max_length=64, null=True, blank=True)  # noqa: DJ001 (null on the wire)

    total = models.PositiveIntegerField(default=0)
    carried = models.PositiveIntegerField(default=0, help_text="Completed lines whose answers were taken over.")
    completed = models.PositiveIntegerField(default=0)
    failed = models.PositiveIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    reasoning_tokens = models.PositiveBigIntegerField(default=0)
    committed = models.PositiveIntegerField(default=0, editable=False, help_text="Results ever written; see Result.")
    provenance = models.ManyToManyField(Provenance, blank=True, related_name="batches")

    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField()
    in_progress_at = models.DateTimeField(null=True, blank=True)
    finalizing_at = models.DateTimeField(null=True, blank=True)
    completed_at = models.DateTimeField(null=True, blank=True)
    failed_at = models.DateTimeField(null=True, blank=True)
    expired_at = models.DateTimeField(null=True, blank=True)
    cancelling_at = models.DateTimeField(null=True, blank=True)
    cancelled_at = models.DateTimeField(null=True, blank=True)
    purged_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="When its results were removed.")
    served_at = models.DateTimeField(
        null=True, blank=True, editable=False, help_text="When a worker last took a shard of it."
    )
    rung_at = models.DateTimeField(default=timezone.now, editable=False, help_text="When its task was last queued.")

    objects = BatchQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        verbose_name_plural = "batches"
        indexes = [
            models.Index(fields=["project", "-created_at", "-id"], name="batches_newest"),
            models.Index(
                fields=["status", "expires_at"], name="batches_active", condition=Q(status__in=sorted(ACTIVE))
            ),
            models.Index(fields=["-created_at", "-id"], name="batches_recent"),
            models.Index(fields=["status", "-created_at", "-id"], name="batches_by_status"),
            models.Index(fields=["model", "-created_at", "-id"], name="batches_by_model"),
            models.Index(fields=["endpoint", "-created_at", "-id"], name="batches_by_endpoint"),
            models.Index(fields=["api_key", "-created_at", "-id"], name="batches_by_key"),
            words.index("metadata", "batches_words"),
            models.Index(fields=["input_file_id"], name="batches_input"),
            models.Index(
                fields=["id"], name="batches_to_purge", condition=Q(status__in=sorted(TERMINAL), purged_at=None)
            ),
        ]
        constraints = [
            models.CheckConstraint(condition=Q(status__in=[s.value for s in BatchStatus]), name="batches_known_status"),
            models.CheckConstraint(
                condition=Q(priority__range=(LOWEST_PRIORITY, HIGHEST_PRIORITY)), name="batches_priority"
            ),
        ]

    def __str__(self) -> str:
        return self.id

    def why_not(self) -> tuple[str, str]:
        """Return the code and the message of why lines don't run: the batch's own, else its models'; or two empty."""
        if self.abort_code or self.purged_at:
            return self.abort_code, self.abort_message
        given_up = self.shards.exclude(abort_code="").order_by("model", "abort_code", "abort_message")
        found = list(given_up.values_list("model", "abort_code", "abort_message").distinct())
        messages = (message if self.model else f"{model}: {message}" for model, _, message in found)
        return (found[0][1] if found else ""), "\n".join(messages)

    @classmethod
    def begin(cls, *, window: timedelta, **fields: Any) -> "Batch":
        """Return a saved new batch in `validating`; call inside the transaction that queues its validation."""
        now = timezone.now()
        batch = cls(id=ids.timed_id("batch", int(now.timestamp())), created_at=now, expires_at=now + window, **fields)
        batch.save(force_insert=True)
        BatchEvent.objects.create(batch=batch, at=now, status=BatchStatus.VALIDATING)
        counting.move(batch.pk, BatchStatus.VALIDATING)
        extra = {"action": "batch_created", "batch": batch.pk, "project": batch.project_id}
        transaction.on_commit(lambda: logger.info("batch created", extra=extra))
        return batch

    def move(self, to: BatchStatus, *, reason: str = "", **changes: Any) -> None:
        """Move to another state, write the event, and set the given fields, in one transaction.

        Raises StaleTransition when the row is not in a state that leads there.
        """
        now = timezone.now()
        changes = {"status": to, timestamp_field(to): now, **changes}
        sources = [source.value for source in SOURCES[to]]
        with transaction.atomic():
            if not sources or not Batch.objects.filter(pk=self.pk, status__in=sources).update(**changes):
                raise StaleTransition(f"{self.pk} can't become {to.value}")
            BatchEvent.objects.create(batch_id=self.pk, at=now, status=to, reason=reason)
            extra = {"action": f"batch_{to}", "batch": self.pk, "reason": reason}
            transaction.on_commit(lambda: logger.info("batch moved", extra=extra))
            moved.send(Batch, batch_id=self.pk, to=to, at=now)
        for name, value in changes.items():
            setattr(self, name, value)


class IntakePause(models.Model):
    """While its one row is there, no new batch is taken."""

    since = models.DateTimeField(default=timezone.now, editable=False)
    by = models.CharField(max_length=150, editable=False)

    def __str__(self) -> str:
        return f"paused by {self.by}"


class BatchEvent(models.Model):
    """One change of a batch's state, or one thing that a person told it to do; rows are only ever added."""

    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField()
    kind = models.CharField(
        max_length=8, choices=[(k.value, k.value) for k in EventKind], default=EventKind.STATUS, editable=False
    )
    status = models.CharField(max_length=12, help_text="The batch's state after it.")
    reason = models.CharField(max_length=200, blank=True)

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.batch_id} {self.status if self.kind == EventKind.STATUS else self.kind}"


class Shard(models.Model):
    """Lines of one batch and one model that run together; the unit that is leased."""

    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="shards", db_index=False)
    index = models.PositiveIntegerField()
    model = models.CharField(max_length=200)
    lines = models.BinaryField(help_text="Packed (number, offset, length), see planning.py.")
    count = models.PositiveIntegerField()
    done = models.PositiveIntegerField(default=0)
    state = models.CharField(
        max_length=8, choices=[(s.value, s.value) for s in ShardState], default=ShardState.PENDING, editable=False
    )
    epoch = models.PositiveIntegerField(default=0, help_text="Raised by every claim; a commit names it.")
    holder = models.CharField(max_length=64, blank=True)
    lease_expires_at = models.DateTimeField(null=True, blank=True)
    abort_code = models.CharField(
        max_length=64,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="Why its lines that never ran did not; empty: as the batch says.",
    )
    abort_message = models.TextField(blank=True, default="", db_default="", editable=False)

    class Meta:
        ordering = ["batch", "index"]
        constraints = [
            models.UniqueConstraint(fields=["batch", "index"], name="shards_by_index"),
            models.CheckConstraint(condition=Q(state__in=[s.value for s in ShardState]), name="shards_known_state"),
        ]
        indexes = [
            models.Index(
                fields=["model", "batch", "index"],
                name="shards_open",
                condition=Q(state__in=[ShardState.PENDING.value, ShardState.LEASED.value]),
            )
        ]

    def __str__(self) -> str:
        return f"{self.batch_id}/{self.index}"


class Result(models.Model):
    """One finished line. Lives here until its batch is finalized into files.

    `position` counts a batch's results in the order in which they were committed, from 1. It is given out with the
    batch's row locked, so a row that becomes visible later always has a higher one. A retried line gets a new one.
    """

    id = models.BigAutoField(primary_key=True)
    # The unique constraint below is the index on batch as well.
    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="results", db_index=False)
    line = models.PositiveIntegerField()
    custom_id = models.TextField(null=True)  # noqa: DJ001 (a bad line may have none)
    status_code = models.PositiveSmallIntegerField(null=True, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    body = models.BinaryField(null=True, blank=True, help_text="The engine's answer, as it wrote it.")
    error_code = models.CharField(max_length=64, blank=True)
    error_message = models.TextField(blank=True)
    input_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    reasoning_tokens = models.PositiveIntegerField(default=0)
    milliseconds = models.PositiveIntegerField(default=0)
    attempts = models.PositiveSmallIntegerField(default=1, help_text="0: it never ran here.")
    position = models.PositiveIntegerField()

    class Meta:
        ordering = ["batch", "line"]
        constraints = [
            models.UniqueConstraint(fields=["batch", "line"], name="results_once"),
            models.UniqueConstraint(fields=["batch", "position"], name="results_by_position"),
        ]

    def __str__(self) -> str:
        return f"{self.batch_id}:{self.line}"

    @property
    def succeeded(self) -> bool:
        """Whether the line belongs in the output file."""
        return self.status_code == 200 and not self.error_code

    @property
    def failure_code(self) -> str:
        """Why the line failed: our code, or the engine's status; empty when it succeeded."""
        return self.error_code or ("" if self.succeeded else f"http_{self.status_code}")


class ResultIndex(models.Model):
    """Where each line of an ended batch lies in its files, in the order in which the lines were committed."""

    batch = models.OneToOneField(Batch, on_delete=models.CASCADE, primary_key=True, related_name="result_index")
    entries = models.BinaryField(help_text="Packed (position, file, offset), see ordering.py.")
    expires_at = models.DateTimeField(db_index=True, help_text="When the files go.")

    def __str__(self) -> str:
        return self.batch_id


class Sample(models.Model):
    """What one batch and model committed in one stretch of time: measured rates are made of these."""

    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="samples", db_index=False)
    model = models.CharField(max_length=200)
    at = models.DateTimeField(help_text="When the stretch began; it is progress.SAMPLE_SECONDS long.")
    lines = models.PositiveIntegerField(default=0, help_text="Completed and failed.")
    failed = models.PositiveIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    milliseconds = models.PositiveBigIntegerField(default=0, help_text="Spent on the lines by the engine, summed.")

    class Meta:
        ordering = ["batch", "at"]
        constraints = [models.UniqueConstraint(fields=["batch", "at", "model"], name="samples_once")]
        indexes = [models.Index(fields=["model", "at"], name="samples_of_model")]

    def __str__(self) -> str:
        return f"{self.batch_id} {self.at}"
