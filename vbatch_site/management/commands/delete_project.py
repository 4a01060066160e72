"""Delete a project from the command line."""

import time
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from vbatch_site import audit, erasure
from vbatch_site.models import Project

_AGAIN_SECONDS = 0.5
_GIVE_UP_SECONDS = 120.0  # a worker that holds lines of a batch lets go of them long before


class Command(BaseCommand):
    help = "Deletes a project: keys, files and their bytes, batches, results, webhooks. There is no way back."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("name")
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def handle(self, *args: Any, **options: Any) -> None:
        """Delete it and return when nothing is left."""
        project = Project.objects.filter(name=options["name"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['name']!r}.")
        if not options["yes"] and input(f"Type {project.name} to delete it and all it has: ") != project.name:
            raise CommandError("Nothing was deleted.")
        erasure.close(project)
        audit.note("deleteProject", project.name, project=project)
        deadline = time.monotonic() + _GIVE_UP_SECONDS
        while not erasure.erase(project):
            if time.monotonic() > deadline:
                raise CommandError("Something of it is still in use; the sweep deletes the rest. Its keys are closed.")
            time.sleep(_AGAIN_SECONDS)
        self.stdout.write(f"Project {project.name} and everything of it is deleted.")
