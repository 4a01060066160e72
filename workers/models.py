"""The model catalogue, the engines that run, and the workers that own them."""

import shlex
from typing import Any

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone

from batches.models import Provenance
from batches.validation import RUNNABLE
from vbatch_site.models import Project

CHAT_ENDPOINTS = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
EMBEDDING_ENDPOINTS = ["/v1/embeddings", "/v1/score", "/v1/rerank"]


def _check_arguments(value: str) -> None:
    try:
        shlex.split(value)
    except ValueError as error:
        raise ValidationError(f"Can't be split into arguments: {error}.") from None


def _check_endpoints(value: Any) -> None:
    if not isinstance(value, list) or not value or any(item not in RUNNABLE for item in value):
        raise ValidationError(f"Must be a list with some of: {', '.join(RUNNABLE)}.")


class ServedModel(models.Model):
    """A model that can be asked for by name."""

    name = models.CharField(max_length=200, unique=True, help_text="What requests say in `model`.")
    source = models.CharField(max_length=500, help_text="A model hub's id or a folder.")
    engine_args = models.TextField(blank=True, validators=[_check_arguments], help_text="Added to vLLM's arguments.")
    endpoints = models.JSONField(default=list, validators=[_check_endpoints])
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    load_seconds = models.FloatField(null=True, blank=True, editable=False, help_text="What the last load took.")
    wake_seconds = models.FloatField(null=True, blank=True, editable=False, help_text="What the last wake-up took.")
    load_error = models.TextField(blank=True, editable=False, help_text="Why the last load failed.")
    load_failed_at = models.DateTimeField(null=True, blank=True, editable=False)
    max_model_len = models.PositiveIntegerField(
        null=True, blank=True, editable=False, help_text="Tokens of context, as its last engine said."
    )

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class Wanted(models.TextChoices):
    """What a person wants of a worker; whatever it is, the lines that it has in hand are finished first."""

    WORK = "", "works"
    DRAIN = "drain", "takes no more work"
    STOP = "stop", "takes no more work, and gives its GPU up"
    UNLOAD = "unload", "gives its GPU up, and then works on"


class Worker(models.Model):
    """A worker process of a gpu cluster: one engine slot."""

    id = models.CharField(primary_key=True, max_length=64, editable=False)
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    started_at = models.DateTimeField(default=timezone.now, editable=False)
    seen_at = models.DateTimeField(default=timezone.now, editable=False)
    stopped_at = models.DateTimeField(null=True, blank=True, editable=False)
    wanted = models.CharField(
        max_length=8, choices=Wanted.choices, blank=True, default=Wanted.WORK, db_default="", editable=False
    )
    load = models.ForeignKey(
        ServedModel,
        on_delete=models.SET_NULL,
        related_name="+",
        null=True,
        blank=True,
        db_index=False,
        editable=False,
        help_text="What a person wants it to load; empty again when it did, or could not.",
    )
    load_asked_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        ordering = ["-seen_at"]

    def __str__(self) -> str:
        return self.id


class ServiceState(models.TextChoices):
    """Where an engine is between its start and its end."""

    PENDING = "pending"
    BUILDING = "building"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"  # ends the live requests that it has, and gets no more
    SLEEPING = "sleeping"  # its weights are in the host's memory: it answers nobody
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED_SERVICES = [ServiceState.COMPLETED, ServiceState.FAILED, ServiceState.CANCELLED]


class Launcher(models.TextChoices):
    """Who starts and stops an engine's process."""

    WORKER = "", "a gpu worker, for itself"
    LOCAL = "local", "this host"
    SLURM = "slurm", "SLURM"


class Service(models.Model):
    """One vLLM server, from its start to its end: a gpu worker's own, or one that a launcher started from a recipe.

    A launched one belongs to the project that asked for it, or to none when it was started for waiting batches.
    """

    model = models.ForeignKey(ServedModel, on_delete=models.CASCADE, related_name="services")
    worker = models.ForeignKey(Worker, on_delete=models.CASCADE, related_name="services", null=True, blank=True)
    state = models.CharField(max_length=10, choices=ServiceState.choices, default=ServiceState.STARTING)
    url = models.CharField(max_length=200, blank=True)
    pid = models.PositiveIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    ready_at = models.DateTimeField(null=True, blank=True, editable=False)
    ended_at = models.DateTimeField(null=True, blank=True, editable=False)
    error = models.TextField(blank=True)
    provenance = models.ForeignKey(
        Provenance, on_delete=models.PROTECT, related_name="services", null=True, blank=True, editable=False
    )

    launcher = models.CharField(max_length=8, choices=Launcher.choices, blank=True, default=Launcher.WORKER)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="services", null=True, blank=True)
    job_id = models.CharField(max_length=64, blank=True, help_text="Its id in the API; under SLURM, the job's.")
    name = models.CharField(max_length=100, blank=True, help_text="Of the job; no two services share one.")
    recipe = models.CharField(max_length=200, blank=True)
    config = models.JSONField(default=dict, blank=True)
    group_id = models.CharField(max_length=64, blank=True)
    replica_index = models.PositiveIntegerField(null=True, blank=True)
    host = models.CharField(max_length=255, blank=True, help_text="The node or host that it runs on.")
    process_started = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="When the process began, in ticks since the host did: ids are used again."
    )
    ends_at = models.DateTimeField(null=True, blank=True, help_text="When its time limit ends it.")
    used_at = models.DateTimeField(default=timezone.now, help_text="When work for it was last seen.")
    gpu_count = models.PositiveIntegerField(default=0, editable=False, help_text="GPUs that it asked for.")
    gpus = models.JSONField(default=list, blank=True, editable=False, help_text="Those of this host that it got.")
    misses = models.PositiveIntegerField(default=0, editable=False, help_text="Looks in a row that it did not answer.")
    fed_by = models.ForeignKey(
        Worker, on_delete=models.SET_NULL, related_name="feeds", null=True, blank=True, help_text="Sends batches to it."
    )

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["project", "-created_at"], condition=~Q(launcher=""), name="service_of_project"),
            models.Index(fields=["launcher", "state"], condition=~Q(launcher=""), name="service_launched"),
            models.Index(fields=["job_id"], condition=~Q(job_id=""), name="service_job"),
        ]

    def __str__(self) -> str:
        return f"{self.model_id} {self.state}"

    @property
    def is_ended(self) -> bool:
        """Whether it will not run again."""
        return self.state in ENDED_SERVICES


class LiveDemand(models.Model):
    """A model that live requests wait for. Whoever waits writes the time again and again: an old one means nothing."""

    model = models.OneToOneField(ServedModel, on_delete=models.CASCADE, primary_key=True, related_name="live_demand")
    since = models.DateTimeField(default=timezone.now, help_text="When the first of them came.")
    wanted_at = models.DateTimeField(default=timezone.now)
    taken_by = models.CharField(max_length=64, blank=True, help_text="The worker that loads it.")
    taken_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return f"{self.model_id} wanted at {self.wanted_at}"


class LiveTraffic(models.Model):
    """What one web process saw of live requests to one engine lately; written at most once a second."""

    service = models.ForeignKey(Service, on_delete=models.CASCADE, related_name="live_traffic")
    process = models.CharField(max_length=64)
    seen_at = models.DateTimeField(default=timezone.now, help_text="When a request was last in flight.")
    in_flight = models.PositiveIntegerField(default=0)
    first_tokens = models.JSONField(default=list, help_text="Pairs: unix time, seconds to the first token.")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["service", "process"], name="live_traffic_once")]

    def __str__(self) -> str:
        return f"{self.service_id} by {self.process}"
