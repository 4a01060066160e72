"""Restore a backup into an empty home and database, and bring what it has to the present.

What ran when the backup was made does not run here: its leases are given up, its workers and services are ended, so
that nothing waits for them. Lines that had an answer then keep it; all others run.
"""

import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction
from django.utils import timezone

from batches.models import Shard
from batches.states import ShardState
from files import storage
from files.models import File, UploadPart
from vbatch_site import dumps
from vbatch_site.doctor import one_line
from vbatch_site.env import env_str
from workers.backup import DUMP, END, FILES, FORMAT, MANIFEST, SECRET, key_digest, names
from workers.models import ENDED_SERVICES, Service, ServiceState, Worker

_BLOCK = 1 << 20  # bytes moved at a time
_CUT_OFF = "The backup has no end: it was cut off while it was made or copied."


class RestoreFailed(Exception):
    """The backup can't be restored; the text says why, in one line."""


@dataclass
class Restored:
    """What came out of a backup."""

    made_at: str = ""
    version: str = ""
    files: int = 0
    ended_files: int = 0  # whose bytes were deleted while the backup was made
    warnings: list[str] = field(default_factory=list)


def is_empty() -> bool:
    """Return whether neither the database nor the storage has anything."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_tables WHERE schemaname = current_schema()")
        tables = cursor.fetchone()[0]
    return not tables and storage.is_empty()


def clear() -> None:
    """Delete the stored files that rows lead to, and every table."""
    if File._meta.db_table in connection.introspection.table_names():
        for name in list(names()):
            storage.delete(name)
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_schema())")
        schema = cursor.fetchone()[0]
        cursor.execute(f"DROP SCHEMA {schema} CASCADE")
        cursor.execute(f"CREATE SCHEMA {schema}")


def check(path: Path) -> None:
    """Raise RestoreFailed unless a file is a backup with both its ends."""
    try:
        with tarfile.open(path, "r:") as archive:
            _manifest(archive)
            if END not in archive.getnames():
                raise RestoreFailed(_CUT_OFF)
    except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
        raise RestoreFailed(f"This is no backup of vbatch, or not all of one ({one_line(error)}).") from error


def read(source: IO[bytes]) -> Restored:
    """Restore a backup from a stream; raise RestoreFailed or dumps.DumpFailed."""
    restored = Restored()
    storage.prepare()
    end: dict[str, Any] | None = None
    try:
        with (
            tarfile.open(fileobj=source, mode="r|") as archive,
            tempfile.NamedTemporaryFile(dir=settings.FILE_UPLOAD_TEMP_DIR, suffix=".dump") as dump,
        ):
            manifest = _manifest(archive)
            restored.made_at, restored.version = manifest["made_at"], manifest["version"]
            for entry, data in _entries(archive):
                if entry.name == DUMP:
                    _copy(data, dump)
                    dump.flush()
                elif entry.name == SECRET:
                    _keep_secret(data.read().decode())
                elif entry.name == END:
                    end = json.loads(data.read())
                elif entry.name.startswith(FILES):
                    with storage.writing(entry.name.removeprefix(FILES)) as out:
                        _copy(data, out)
                    restored.files += 1
            if end is None:
                raise RestoreFailed(_CUT_OFF)
            dumps.load(Path(dump.name))
    except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
        raise RestoreFailed(f"This is no whole backup: {one_line(error)}.") from error
    call_command("migrate", interactive=False, verbosity=0)
    restored.ended_files = _settle(end["missing"])
    restored.warnings = _doubts(manifest)
    return restored


def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    entry = archive.next()
    data = archive.extractfile(entry) if entry is not None and entry.name == MANIFEST else None
    if data is None:
        raise RestoreFailed("This is no backup of vbatch.")
    manifest: dict[str, Any] = json.loads(data.read())
    if manifest["format"] > FORMAT:
        raise RestoreFailed(f"The backup was made by vbatch {manifest['version']}, which is newer: restore with that.")
    return manifest


def _entries(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    for entry in archive:
        # The storage refuses names that lead out of it; nothing else of a backup is written by its name.
        if entry.isreg() and (data := archive.extractfile(entry)) is not None:
            yield entry, data


def _copy(source: IO[bytes], out: Any) -> None:
    while block := source.read(_BLOCK):
        out.write(block)


def _keep_secret(secret: str) -> None:
    """Put the secret key where this home keeps its own, readable by its owner only."""
    path = settings.VBATCH_HOME / "secret_key"
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(secret)
    draft.replace(path)
    if not env_str("VBATCH_SECRET_KEY"):
        # What follows in this process is sealed and signed with it too.
        settings.SECRET_KEY = secret


def _settle(missing: list[str]) -> int:
    """End what does not go on here, and rows without bytes; return how many files those were."""
    now = timezone.now()
    Shard.objects.filter(state=ShardState.LEASED).update(state=ShardState.PENDING, holder="", lease_expires_at=None)
    Worker.objects.filter(stopped_at=None).update(stopped_at=now)
    Service.objects.exclude(state__in=ENDED_SERVICES).update(
        state=ServiceState.FAILED, ended_at=now, error="It ran where the backup was made."
    )
    # A process of another host, or of the server that the backup is of, is not ours to stop.
    Service.objects.filter(pid__isnull=False).update(pid=None, process_started=None)
    UploadPart.objects.filter(path__in=missing).delete()
    return File.objects.filter(path__in=missing, deleted_at=None).update(deleted_at=now)


def _doubts(manifest: dict[str, Any]) -> list[str]:
    if key_digest(settings.SECRET_KEY) == manifest["secret_key"]:
        return []
    return [
        "The secret key is not the backup's: webhook secrets can't be read, and sign-ins and queued tasks are void. "
        "Set VBATCH_SECRET_KEY to the old server's."
    ]
