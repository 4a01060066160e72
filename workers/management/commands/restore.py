"""Restore a backup."""

import sys
from argparse import ArgumentParser
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from django.core.exceptions import SuspiciousFileOperation
from django.core.management.base import BaseCommand, CommandError

from vbatch_site.dumps import DumpFailed
from vbatch_site.management.commands.serve import only_one
from workers import restoring

_NOT_EMPTY = (
    "The database or the storage has something already. Set VBATCH_HOME and DATABASE_URL to empty ones, "
    "or say --replace to delete what these have."
)


class Command(BaseCommand):
    help = "Restores a backup into an empty VBATCH_HOME and database. The server must not run."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("file", help="the backup; - is standard input")
        parser.add_argument("--replace", action="store_true", help="delete what the database has now")

    def handle(self, *args: Any, **options: Any) -> None:
        """Restore it."""
        name, replaces = options["file"], options["replace"]
        if name == "-" and replaces:
            raise CommandError("--replace takes a file: it looks whether the backup is whole before it deletes.")
        with only_one(), ExitStack() as stack:
            try:
                source: Any = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
                if name != "-":
                    restoring.check(Path(name))
                if not restoring.is_empty():
                    if not replaces:
                        raise CommandError(_NOT_EMPTY)
                    restoring.clear()
                restored = restoring.read(source)
            except (restoring.RestoreFailed, DumpFailed, SuspiciousFileOperation) as error:
                raise CommandError(str(error)) from None
            except OSError as error:
                raise CommandError(f"Can't restore {name}: {error.strerror or error}.") from None
        for warning in restored.warnings:
            self.stderr.write(f"vbatch: {warning}")
        ended = f", {restored.ended_files} without bytes ended" if restored.ended_files else ""
        self.stderr.write(
            f"vbatch: restored the backup of {restored.made_at}, vbatch {restored.version}: "
            f"{restored.files} stored files{ended}. Start the server with manage.py serve."
        )
