"""Delete a project and everything that it has, bytes included.

The rooms after this one register how they empty themselves of a project. A project that is being deleted is closed
first, so that nothing new comes; a crash leaves it closed, and the sweep goes on.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

from django.db import transaction
from django.utils import timezone

from vbatch_site.models import Project, Tally

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Room:
    """How one room empties itself of a project."""

    empty: Callable[[Project], None]  # delete bytes and rows; what is in use may stay for the next time
    is_empty: Callable[[Project], bool]


_rooms: dict[str, Room] = {}


def register(name: str, room: Room) -> None:
    """Add a room; rooms are emptied in the reverse order, so that nothing is left without what it refers to."""
    _rooms[name] = room


def close(project: Project) -> None:
    """Let no key of a project open anything from now on."""
    Project.objects.filter(pk=project.pk, deleted_at=None).update(deleted_at=timezone.now())


def erase(project: Project) -> bool:
    """Delete a closed project; return whether all of it is gone. False: something was in use, try again."""
    for room in reversed(_rooms.values()):
        room.empty(project)
        if not room.is_empty(project):
            return False
    with transaction.atomic():
        # While this lock is held nobody can add a row that refers to the project.
        if not Project.objects.select_for_update().filter(pk=project.pk).exists():
            return True
        if not all(room.is_empty(project) for room in _rooms.values()):
            return False
        Tally.objects.filter(project_id=project.pk).delete()
        Project.objects.get(pk=project.pk).delete()
    logger.info("project deleted", extra={"action": "project_deleted", "project": project.name})
    return True


def sweep() -> None:
    """Go on with projects that are closed and not gone yet."""
    for project in Project.objects.exclude(deleted_at=None):
        erase(project)
