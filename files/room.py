"""How much a project may store."""

from django.db.models import Q, Sum
from django.utils import timezone

from files.models import File, Upload
from vbatch_site import limits
from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError


def held(project: Project) -> int:
    """Return the bytes of a project's files, those on their way and in parts included."""
    here = Q(deleted_at=None) | Q(deleted_at__gt=timezone.now())
    files = File.objects.filter(here, project=project).aggregate(sum=Sum("bytes"))["sum"] or 0
    parts = Upload.objects.pending().filter(project=project).aggregate(sum=Sum("received_bytes"))["sum"] or 0
    return int(files + parts)


def check(project: Project, size: int) -> None:
    """Refuse so many bytes more when there is no room for them; call in the transaction that saves their row."""
    limit = limits.limit_of(project, "storage_bytes")
    if limit is None or not size:
        return
    # Two uploads at once must count each other.
    limits.lock(project)
    used = held(project)
    if used + size > limit:
        message = (
            f"Storage limit reached in organization {project.name}. Limit: {limit:,} bytes, used: {used:,} bytes. "
            "Please delete files and try again."
        )
        # Not a 429 or a 5xx: SDKs would send the whole file twice more.
        raise ApiError(message, code="storage_limit_exceeded", http_status=413)
