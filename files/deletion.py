"""Delete a file: it is gone for everybody at once, and its bytes as soon as no batch reads them."""

from django.db import transaction
from django.dispatch import Signal
from django.utils import timezone

from files.models import File
from vbatch_site import audit

# A file was deleted, inside the transaction that made it so: `file_id`. Whoever knows what reads it removes the bytes.
deleted = Signal()


def delete(file: File) -> None:
    """Delete a file; one that is deleted already is no error."""
    with transaction.atomic():
        if File.objects.filter(pk=file.pk, deleted_at=None).update(deleted_at=timezone.now()):
            deleted.send(File, file_id=file.pk)
        audit.note_change(file.pk)
