"""Write a backup of everything into one file."""

import os
import sys
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.template.defaultfilters import filesizeformat

from vbatch_site.dumps import DumpFailed
from workers import backup


class Command(BaseCommand):
    help = (
        "Writes the database, the files and the secret key into one tar, while the server runs or not. "
        "Models' weights, logs and services are not in it."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("file", help="where to write it; - is standard output")

    def handle(self, *args: Any, **options: Any) -> None:
        """Write it, whole or not at all."""
        try:
            written = backup.write(sys.stdout.buffer) if options["file"] == "-" else _to(Path(options["file"]))
        except (backup.BackupFailed, DumpFailed) as error:
            raise CommandError(str(error)) from None
        except OSError as error:
            raise CommandError(f"Can't write the backup: {error.strerror or error}.") from None
        said = [
            f"database {filesizeformat(written.database_bytes)}",
            f"{written.files} files {filesizeformat(written.bytes)}",
            "secret key: keep the backup as safe as the server"
            if written.has_secret
            else "no secret key: VBATCH_SECRET_KEY has it, keep that too",
        ]
        if written.missing:
            said.append(f"{len(written.missing)} files were deleted meanwhile")
        self.stderr.write(f"vbatch: backed up: {'; '.join(said)}.")


def _to(target: Path) -> backup.Written:
    if target.is_dir():
        raise CommandError(f"{target} is a folder; name a file.")
    descriptor, draft = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as out:
            written = backup.write(out)
            out.flush()
            os.fsync(out.fileno())
        os.replace(draft, target)
    except BaseException:
        os.unlink(draft)
        raise
    return written
