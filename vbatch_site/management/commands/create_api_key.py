"""Issue an API key from the command line."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from vbatch_site.models import DEFAULT_PROJECT, ApiKey, Project


class Command(BaseCommand):
    help = "Prints a new API key, alone, on standard output. It is stored hashed and can't be shown again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("name", help="what the key is for")
        parser.add_argument("--project", default=DEFAULT_PROJECT, help="made if there is none of that name")

    def handle(self, *args: Any, **options: Any) -> None:
        """Issue the key."""
        project, _ = Project.objects.get_or_create(name=options["project"])
        _, text = ApiKey.issue(project, options["name"])
        self.stdout.write(text)
