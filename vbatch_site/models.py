"""Projects and the API keys that speak for them."""

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MinValueValidator
from django.db import connection, models, transaction
from django.dispatch import Signal
from django.utils import timezone

from vbatch_site.console.roles import RIGHTS

DEFAULT_PROJECT = "default"

key_revoked = Signal()  # with `instance`

# A use is written at most this often, so that a polling client does not cost a write per poll.
LAST_USED_RESOLUTION = timedelta(minutes=1)

_PREFIX = 12  # characters of a key that are kept and shown; 32 unknown bytes are left

_LIMIT = "Empty: the server's own limit. 0: none."


class Project(models.Model):
    """A tenant: owns keys, files and batches, and sees nothing of another's."""

    name = models.SlugField(max_length=64, unique=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    weight = models.PositiveSmallIntegerField(
        default=1, validators=[MinValueValidator(1)], help_text="Share of the engines when projects compete for them."
    )
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True, help_text=_LIMIT)
    batches_per_hour = models.PositiveIntegerField(null=True, blank=True, help_text=_LIMIT)
    queued_requests = models.PositiveBigIntegerField(null=True, blank=True, help_text=f"Of running batches. {_LIMIT}")
    queued_tokens = models.PositiveBigIntegerField(
        null=True, blank=True, help_text=f"About four bytes each, of running batches of one model. {_LIMIT}"
    )
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False, help_text="Closed; it is being deleted.")
    storage_bytes = models.PositiveBigIntegerField(null=True, blank=True, help_text=f"Of all files. {_LIMIT}")

    class Meta:
        ordering = ["name"]
        # The rights of the console, see console/roles.py; a tenant is what they are about.
        permissions = [(right.value, text) for right, text in RIGHTS.items()]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def default(cls) -> "Project":
        """Return the project that requests without a key belong to when VBATCH_AUTH is optional."""
        return cls.objects.get_or_create(name=DEFAULT_PROJECT)[0]


def hash_key(key: str) -> str:
    """Return what is stored of a key; a key is 256 random bits, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


class Scope(models.TextChoices):
    """What a key may be used for."""

    BATCHES = "batches", "Files, uploads and batches"
    LIVE = "live", "Live requests"
    SERVICES = "services", "Start and stop services"
    READ_ONLY = "read-only", "Read only: what is ticked above, or all of it when nothing is"


AREAS = (Scope.BATCHES, Scope.LIVE, Scope.SERVICES)


def all_areas() -> list[str]:
    """Return the scopes of a key that may do everything."""
    return [area.value for area in AREAS]


class ApiKey(models.Model):
    """A bearer key of one project; its text is shown once, when it is made."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100)
    scopes = ArrayField(models.CharField(max_length=16, choices=Scope.choices), default=all_areas)
    prefix = models.CharField(max_length=16, editable=False, db_index=True)
    key_hash = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_from = models.GenericIPAddressField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True)
    successor = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.SET_NULL, related_name="predecessors", editable=False
    )

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}...)"

    @classmethod
    def draft(cls, project: Project, name: str) -> tuple["ApiKey", str]:
        """Return an unsaved key and its text, which is kept nowhere."""
        text = "sk-vb-" + secrets.token_urlsafe(32)
        return cls(project=project, name=name, prefix=text[:_PREFIX], key_hash=hash_key(text)), text

    @classmethod
    def issue(
        cls, project: Project, name: str, *, scopes: list[str] | None = None, expires_at: datetime | None = None
    ) -> tuple["ApiKey", str]:
        """Save a new key and return it with its text; without scopes it may do everything."""
        key, text = cls.draft(project, name)
        key.scopes, key.expires_at = scopes or all_areas(), expires_at
        # With its line in the audit, which hears of it by signal.
        with transaction.atomic():
            key.save()
        return key, text

    @classmethod
    def valid_for(cls, key: str, now: datetime) -> "ApiKey | None":
        """Return the live key that this text is, with its project loaded."""
        with connection.cursor() as cursor:
            cursor.execute(cls.lookup(), cls.lookup_values(key))
            return cls.found(cursor.fetchall(), key, now)

    @staticmethod
    @cache
    def lookup() -> str:
        """Return the statement that finds keys, each with its project.

        Every request asks it, and the ORM takes longer to write it than Postgres to answer.
        """
        columns = [f'k."{field.column}"' for field in ApiKey._meta.concrete_fields]
        columns += [f'p."{field.column}"' for field in Project._meta.concrete_fields]
        return (
            f"SELECT {', '.join(columns)} FROM {ApiKey._meta.db_table} k"  # noqa: S608 (names of our own)
            f" JOIN {Project._meta.db_table} p ON p.id = k.project_id"
            " WHERE k.prefix = %s AND k.revoked_at IS NULL AND p.deleted_at IS NULL"
        )

    @staticmethod
    def lookup_values(key: str) -> tuple[str]:
        """Return the statement's parameters: keys are found by what is no secret of them."""
        return (key[:_PREFIX],)

    @classmethod
    def found(cls, rows: Sequence[tuple[Any, ...]], key: str, now: datetime) -> "ApiKey | None":
        """Return the live key that this text is among the statement's rows."""
        digest = hash_key(key)
        own, others = cls._meta.concrete_fields, Project._meta.concrete_fields
        for row in rows:
            candidate = cls.from_db("default", [field.attname for field in own], row[: len(own)])
            # The comparison of what is secret takes the same time for every wrong key.
            if hmac.compare_digest(candidate.key_hash, digest) and candidate.is_live(now):
                candidate.project = Project.from_db("default", [field.attname for field in others], row[len(own) :])
                return candidate
        return None

    def is_live(self, now: datetime) -> bool:
        """Return whether the key opens anything."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)

    def allows(self, area: str | None, *, reading: bool) -> bool:
        """Return whether the key may be used for this area; None is what every key may do."""
        if Scope.READ_ONLY in self.scopes and not reading:
            return False
        # Read only and nothing else: it reads everything.
        named = [scope for scope in self.scopes if scope != Scope.READ_ONLY] or all_areas()
        return area is None or area in named

    def rotate(self, now: datetime, overlap: timedelta) -> tuple["ApiKey", str]:
        """Issue a successor of the same rights, and let this key die after the overlap; return both as `issue` does."""
        life = self.expires_at - self.created_at if self.expires_at else None
        with transaction.atomic():
            successor, text = ApiKey.issue(
                self.project, self.name, scopes=self.scopes, expires_at=now + life if life else None
            )
            self.successor = successor
            self.expires_at = min(self.expires_at or now + overlap, now + overlap)
            self.save(update_fields=["successor", "expires_at"])
        return successor, text

    def revoke(self, now: datetime) -> bool:
        """Make the key useless from the next request on; return False when it was so already."""
        with transaction.atomic():
            revoked = bool(ApiKey.objects.filter(pk=self.pk, revoked_at=None).update(revoked_at=now))
            if revoked:
                key_revoked.send(ApiKey, instance=self)
        return revoked

    def is_touch_due(self, now: datetime) -> bool:
        """Return whether the note of its last use is too old."""
        return self.last_used_at is None or now - self.last_used_at > LAST_USED_RESOLUTION

    def touch(self, now: datetime, address: str | None) -> None:
        """Note that the key was used, and from where."""
        if self.is_touch_due(now):
            ApiKey.objects.filter(pk=self.pk).update(last_used_at=now, last_used_from=address)


class RequestBucket(models.Model):
    """When a project's allowance of requests is full again. Written by vbatch_site/limits.py alone, without the ORM.

    The table is unlogged: a count that a crash of the database forgets is worth no flush for each request.
    """

    project = models.OneToOneField(Project, primary_key=True, on_delete=models.CASCADE, related_name="+")
    full_at = models.BigIntegerField(help_text="Unix time in microseconds.")

    def __str__(self) -> str:
        return f"{self.project_id}: {self.full_at}"


class Tally(models.Model):
    """Part of a counter that only grows. Written and read by vbatch_site/tally.py alone; a counter has several rows."""

    name = models.CharField(max_length=40)
    # No foreign key: whoever counts must not lock the project's row.
    project_id = models.BigIntegerField(default=0)
    model = models.CharField(max_length=200, blank=True)
    label = models.CharField(max_length=200, blank=True)
    value = models.FloatField()

    def __str__(self) -> str:
        return f"{self.name} {self.project_id} {self.model} {self.label}: {self.value:g}"


class AuditEntry(models.Model):
    """Somebody did something. Written by vbatch_site/audit.py; a trigger refuses every change.

    Everything is text, because an entry outlives what it is about.
    """

    at = models.DateTimeField(default=timezone.now, db_index=True)
    via = models.CharField(max_length=10, help_text="api, console, admin or command.")
    actor = models.CharField(max_length=150, help_text="A key's beginning, a user's name, or who ran the command.")
    action = models.CharField(max_length=100)
    object_id = models.CharField(max_length=200, blank=True, db_index=True)
    project = models.CharField(max_length=64, blank=True)
    address = models.GenericIPAddressField(null=True, blank=True)
    request_id = models.CharField(max_length=40, blank=True)
    detail = models.JSONField(null=True, blank=True)

    class Meta:
        ordering = ["-id"]
        verbose_name_plural = "audit"

    def __str__(self) -> str:
        return f"{self.actor} {self.action} {self.object_id}"


class IdempotencyKey(models.Model):
    """What a client's key of a request stands for; rows live a day."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+", db_index=False)
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(max_length=64, help_text="Digest of the request.")
    object_id = models.CharField(max_length=64, help_text="What the request made.")
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["project", "key"], name="idempotency_once")]

    def __str__(self) -> str:
        return self.key
