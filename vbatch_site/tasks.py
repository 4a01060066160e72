"""What django-q2 calls on the default cluster."""

from vbatch_site import erasure
from vbatch_site.models import Project


def erase(project_id: int) -> bool:
    """Delete a closed project; the sweep goes on with what is in use now."""
    project = Project.objects.exclude(deleted_at=None).filter(pk=project_id).first()
    return project is None or erasure.erase(project)
