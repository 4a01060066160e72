"""Files as the API shows them; their bytes are in files/storage.py's care."""

from datetime import timedelta
from typing import TYPE_CHECKING

from django.db import models
from django.db.models import Q
from django.utils import timezone

from vbatch_site.models import Project
from vbatch_site.openai import ids

if TYPE_CHECKING:
    from datetime import datetime

BATCH_FILE_LIFE = timedelta(days=30)  # of a batch file uploaded without expires_after, and of output (contract.md 1.1)


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


class File(models.Model):
    """An object of the Files API. A deleted row stays until no batch needs its bytes."""

    id = models.CharField(primary_key=True, max_length=40, default=ids.file_id, editable=False)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="files")
    purpose = models.CharField(max_length=20, choices=Purpose.choices)
    filename = models.CharField(max_length=512)
    bytes = models.BigIntegerField()
    path = models.CharField(max_length=200, editable=False, help_text="Name in the storage.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    deleted_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = FileQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(fields=["project", "-created_at", "-id"], name="files_newest"),
            models.Index(fields=["expires_at"], name="files_expiring", condition=Q(deleted_at=None)),
            models.Index(fields=["deleted_at"], name="files_deleted", condition=~Q(deleted_at=None)),
        ]

    def __str__(self) -> str:
        return self.id
