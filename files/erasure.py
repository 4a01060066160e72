"""Empty the storage of a project."""

from typing import Any

from files import storage
from files.models import File, Upload, UploadPart
from vbatch_site.models import Project

_AT_ONCE = 500  # rows


def empty(project: Project) -> None:
    """Delete bytes first and rows after them, so that a crash leaves the row that leads to the bytes."""
    # What is on its way keeps nothing either: whoever stores it finds its row gone, and removes the bytes.
    everything: tuple[Any, ...] = (
        UploadPart.objects.filter(upload__project=project),
        File.objects.filter(project=project),
    )
    for rows in everything:
        while found := list(rows.order_by("pk")[:_AT_ONCE]):
            for row in found:
                storage.delete(row.path)
            rows.filter(pk__in=[row.pk for row in found]).delete()
    Upload.objects.filter(project=project).delete()


def is_empty(project: Project) -> bool:
    """Return whether a project has no file and no upload."""
    return not any(model.objects.filter(project=project).exists() for model in (File, Upload))
