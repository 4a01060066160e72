"""Empty a project of its services."""

import shutil

from vbatch_site.models import Project
from workers import services
from workers.launchers import LaunchError
from workers.models import Service


def empty(project: Project) -> None:
    """Stop and delete services with their logs; one whose machine can't be reached stays for the next time."""
    for service in Service.objects.filter(project=project).select_related("model"):
        try:
            services.cancel(service)
        except LaunchError:
            continue
        shutil.rmtree(services.folder_of(service), ignore_errors=True)
        service.delete()


def is_empty(project: Project) -> bool:
    """Return whether a project has no service."""
    return not Service.objects.filter(project=project).exists()
