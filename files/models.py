"""Files as the API shows them; their bytes are in files/storage.py's care."""

from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import models
from django.db.models import Q
from django.utils import timezone

from vbatch_site import words
from vbatch_site.models import ApiKey, Project
from vbatch_site.openai import ids

if TYPE_CHECKING:
    from datetime import datetime

BATCH_FILE_LIFE = timedelta(days=30)  # of a batch file uploaded without expires_after, and of output (contract.md 1.1)
UPLOAD_LIFE = timedelta(hours=1)  # time to add parts and complete (contract.md 5)
ARRIVAL_TIME = timedelta(days=1)  # far more than storing the largest file takes, on the slowest storage


class NeverArrived(Exception):
    """The bytes of a file were stored too late, and are gone again."""


class Purpose(models.TextChoices):
    """What a file is for; the first six can be uploaded."""

    FINE_TUNE = "fine-tune"
    ASSISTANTS = "assistants"
    BATCH = "batch"
    USER_DATA = "user_data"
    VISION = "vision"
    EVALS = "evals"
    BATCH_OUTPUT = "batch_output"


UPLOAD_PURPOSES = [purpose.value for purpose in Purpose if purpose != Purpose.BATCH_OUTPUT]
PRIVATE_PURPOSES = {Purpose.ASSISTANTS, Purpose.USER_DATA}  # their content can't be downloaded (contract.md 1.5)


class FileQuerySet(models.QuerySet["File"]):
    """Questions asked of files."""

    def visible_to(self, project: Project) -> "FileQuerySet":
        """Return the project's files that are neither deleted nor expired."""
        now = timezone.now()
        return self.filter(project=project, deleted_at=None).filter(Q(expires_at=None) | Q(expires_at__gt=now))

    def expired(self, now: "datetime") -> "FileQuerySet":
        """Return files whose time is over and that nobody deleted yet."""
        return self.filter(deleted_at=None, expires_at__lte=now)

    def gone(self, now: "datetime") -> "FileQuerySet":
        """Return deleted files, and those whose bytes never came."""
        return self.filter(deleted_at__lte=now)


class File(models.Model):
    """An object of the Files API. A deleted row stays until no batch needs its bytes.

    The row is there before the bytes are: a file on its way is one that will be deleted in ARRIVAL_TIME unless it
    arrives, so that a crash in between leaves nothing that the sweep does not find.
    """

    id = models.CharField(primary_key=True, max_length=40, default=ids.file_id, editable=False)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="files")
    purpose = models.CharField(max_length=20, choices=Purpose.choices)
    filename = models.CharField(max_length=512)
    bytes = models.BigIntegerField()
    lines = models.PositiveBigIntegerField(null=True, blank=True, editable=False, help_text="Where they were counted.")
    api_key = models.ForeignKey(
        ApiKey, on_delete=models.SET_NULL, related_name="files", null=True, blank=True, editable=False
    )
    path = models.CharField(max_length=200, editable=False, help_text="Name in the storage.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = FileQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["project", "-created_at", "-id"], name="files_newest"),
            models.Index(fields=["-created_at", "-id"], name="files_recent"),
            models.Index(
                fields=["purpose", "-created_at", "-id"], name="files_by_purpose", condition=Q(deleted_at=None)
            ),
            words.index("filename", "files_words"),
            models.Index(fields=["expires_at"], name="files_expiring", condition=Q(deleted_at=None)),
            models.Index(fields=["deleted_at"], name="files_deleted", condition=~Q(deleted_at=None)),
        ]

    def __str__(self) -> str:
        return self.id

    def announce(self) -> None:
        """Save the row of a file whose bytes are about to be stored; nobody sees it yet."""
        self.deleted_at = self.created_at + ARRIVAL_TIME
        self.save(force_insert=True)

    def arrive(self) -> None:
        """Show the file: its bytes are stored. Raise NeverArrived when the sweep has given it up."""
        if not File.objects.filter(pk=self.pk, deleted_at__gt=timezone.now()).update(deleted_at=None):
            raise NeverArrived(self.pk)
        self.deleted_at = None


class UploadState(models.TextChoices):
    """Where an upload in parts stands; only a pending one takes parts."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class UploadQuerySet(models.QuerySet["Upload"]):
    """Questions asked of uploads."""

    def pending(self) -> "UploadQuerySet":
        """Return uploads that nothing has ended."""
        return self.filter(state=UploadState.PENDING)


class Upload(models.Model):
    """A file that arrives in parts. Its state leaves `pending` once, by a guarded UPDATE in parts.py."""

    id = models.CharField(primary_key=True, max_length=48, editable=False)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="uploads")
    purpose = models.CharField(max_length=20, choices=Purpose.choices)
    filename = models.CharField(max_length=512)
    mime_type = models.CharField(max_length=255)
    bytes = models.BigIntegerField(help_text="What the parts must add up to.")
    life_seconds = models.PositiveIntegerField(null=True, blank=True, help_text="Of the file, from its creation.")
    state = models.CharField(max_length=10, choices=UploadState.choices, default=UploadState.PENDING, editable=False)
    received_bytes = models.BigIntegerField(default=0, editable=False, help_text="Of all parts, used or not.")
    received_parts = models.PositiveIntegerField(default=0, editable=False)
    recipe = models.CharField(
        max_length=64, blank=True, editable=False, help_text="Digest of what it was completed from."
    )
    file = models.OneToOneField(
        File, null=True, blank=True, on_delete=models.SET_NULL, related_name="+", editable=False
    )
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(editable=False)

    objects = UploadQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [models.Index(fields=["expires_at"], name="uploads_by_end")]
        constraints = [
            models.CheckConstraint(condition=Q(state__in=UploadState.values), name="uploads_known_state"),
        ]

    def __str__(self) -> str:
        return self.id


class UploadPart(models.Model):
    """Bytes on their way into an upload's file. The row is there before they are, and goes after them."""

    id = models.CharField(primary_key=True, max_length=48, editable=False)
    upload = models.ForeignKey(Upload, on_delete=models.CASCADE, related_name="parts")
    bytes = models.PositiveIntegerField()
    path = models.CharField(max_length=200, editable=False, help_text="Name in the storage.")
    stored = models.BooleanField(default=False, editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["created_at", "id"]

    def __str__(self) -> str:
        return self.id
