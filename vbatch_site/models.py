"""Projects and the API keys that speak for them."""

import hashlib
import secrets
from datetime import datetime, timedelta

from django.db import models
from django.utils import timezone

DEFAULT_PROJECT = "default"

# A use is written at most this often, so that a polling client does not cost a write per poll.
LAST_USED_RESOLUTION = timedelta(minutes=1)


class Project(models.Model):
    """A tenant: owns keys, files and batches, and sees nothing of another's."""

    name = models.SlugField(max_length=64, unique=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name

    @classmethod
    def default(cls) -> "Project":
        """Return the project that requests without a key belong to when VBATCH_AUTH is optional."""
        return cls.objects.get_or_create(name=DEFAULT_PROJECT)[0]


def hash_key(key: str) -> str:
    """Return what is stored of a key; a key is 256 random bits, so one round of SHA-256 is enough."""
    return hashlib.sha256(key.encode()).hexdigest()


class ApiKeyQuerySet(models.QuerySet["ApiKey"]):
    """Questions asked of keys."""

    def valid_for(self, key: str, now: datetime) -> "ApiKey | None":
        """Return the live key that this text is, with its project loaded."""
        found = self.filter(key_hash=hash_key(key), revoked_at=None).select_related("project").first()
        if found is None or (found.expires_at is not None and found.expires_at <= now):
            return None
        return found


class ApiKey(models.Model):
    """A bearer key of one project; its text is shown once, when it is made."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=16, editable=False)
    key_hash = models.CharField(max_length=64, unique=True, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        verbose_name = "API key"

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}...)"

    @classmethod
    def draft(cls, project: Project, name: str) -> tuple["ApiKey", str]:
        """Return an unsaved key and its text, which is kept nowhere."""
        text = "sk-vb-" + secrets.token_urlsafe(32)
        return cls(project=project, name=name, prefix=text[:12], key_hash=hash_key(text)), text

    @classmethod
    def issue(cls, project: Project, name: str) -> tuple["ApiKey", str]:
        """Save a new key and return it with its text."""
        key, text = cls.draft(project, name)
        key.save()
        return key, text

    def touch(self, now: datetime) -> None:
        """Note that the key was used."""
        if self.last_used_at is None or now - self.last_used_at > LAST_USED_RESOLUTION:
            ApiKey.objects.filter(pk=self.pk).update(last_used_at=now)


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
