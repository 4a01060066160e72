"""Issue an API key from the command line."""

import re
from argparse import ArgumentParser, ArgumentTypeError
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand
from django.utils import timezone

from vbatch_site.models import DEFAULT_PROJECT, ApiKey, Project, Scope

_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def _life(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9]\d{0,4})([mhd])", text)
    if match is None:
        raise ArgumentTypeError(f"{text!r} is no length of time: expected a number and m, h or d, such as 90d")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _scopes(text: str) -> list[str]:
    scopes = [part.strip() for part in text.split(",")]
    if unknown := set(scopes) - set(Scope.values):
        raise ArgumentTypeError(f"unknown scopes {sorted(unknown)}: expected some of {', '.join(Scope.values)}")
    return scopes


class Command(BaseCommand):
    help = "Prints a new API key, alone, on standard output. It is stored hashed and can't be shown again."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("name", help="what the key is for")
        parser.add_argument("--project", default=DEFAULT_PROJECT, help="made if there is none of that name")
        parser.add_argument(
            "--scopes",
            type=_scopes,
            help=f"some of {', '.join(Scope.values)}, separated by commas; else everything",
        )
        parser.add_argument("--expires", type=_life, help="when the key dies, counted from now, such as 90d or 12h")

    def handle(self, *args: Any, **options: Any) -> None:
        """Issue the key."""
        project, _ = Project.objects.get_or_create(name=options["project"])
        expires_at = timezone.now() + options["expires"] if options["expires"] else None
        _, text = ApiKey.issue(project, options["name"], scopes=options["scopes"], expires_at=expires_at)
        self.stdout.write(text)
