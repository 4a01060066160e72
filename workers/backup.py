"""Write a backup: the database as it was at one moment, the bytes that its rows name, and the secret key.

The database's snapshot comes first and names the files, which never change; while they are copied the sweep removes
none. What was deleted in between by hand is noted, so that restoring can end its row.

A backup is a tar: manifest.json, database.dump (pg_dump's custom format), secret_key, files/..., end.json. Without the
last it is not whole.
"""

import hashlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from batches import line_index
from batches.locks import REMOVING, batch_lock
from files import storage
from files.models import File, UploadPart
from vbatch_site import __version__, dumps
from vbatch_site.env import env_str

FORMAT = 1
MANIFEST, DUMP, SECRET, FILES, END = "manifest.json", "database.dump", "secret_key", "files/", "end.json"

_LOCK_SECONDS = 60  # that a sweep which is removing files is waited for


class BackupFailed(Exception):
    """No backup could be made; the text says why, in one line."""


@dataclass
class Written:
    """What a backup has in it."""

    files: int = 0
    bytes: int = 0
    database_bytes: int = 0
    has_secret: bool = False
    missing: list[str] = field(default_factory=list)  # names in the storage that were deleted meanwhile


def key_digest(secret: str) -> str:
    """Return what tells two secret keys apart and neither of them to anybody."""
    return hashlib.sha256(b"vbatch backup\0" + secret.encode()).hexdigest()[:16]


def write(out: IO[bytes]) -> Written:
    """Write a backup to a stream; raise BackupFailed or dumps.DumpFailed."""
    written = Written()
    storage.prepare()
    with (
        _keeping_bytes(),
        # Found and removed with what else is left there, should this process be killed.
        tempfile.NamedTemporaryFile(dir=settings.FILE_UPLOAD_TEMP_DIR, suffix=".dump") as dump,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive,
    ):
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            # It is silent for as long as pg_dump runs; under our usual name it would be taken for stuck and ended.
            cursor.execute("SET LOCAL application_name = 'vbatch backup'")
            cursor.execute("SELECT pg_export_snapshot()")
            snapshot = cursor.fetchone()[0]
            wanted = list(names())
            dumps.dump(Path(dump.name), snapshot)
        _add(archive, MANIFEST, json.dumps(_manifest()).encode())
        archive.add(dump.name, DUMP, filter=_plain)
        written.database_bytes = Path(dump.name).stat().st_size
        secret = _secret()
        if secret is not None:
            _add(archive, SECRET, secret.encode())
            written.has_secret = True
        for name in wanted:
            _add_file(archive, name, written)
        _add(archive, END, json.dumps({"files": written.files, "missing": written.missing}).encode())
    return written


@contextmanager
def _keeping_bytes() -> Iterator[None]:
    """Let no sweep remove files until the block ends; raise BackupFailed when one is at it for too long."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        with batch_lock(REMOVING) as mine:
            if mine:
                yield
                return
        if time.monotonic() > deadline:
            raise BackupFailed("Another backup is running, or files are being removed; try again.")
        time.sleep(0.2)


def names() -> Iterator[str]:
    """Yield the names in the storage of all bytes that rows lead to, each once."""
    indexed = set()
    for path in File.objects.order_by("pk").values_list("path", flat=True).iterator():
        yield path
        if (batch_id := line_index.batch_of(path)) and batch_id not in indexed:
            indexed.add(batch_id)
            yield line_index.name_for(batch_id)
    yield from UploadPart.objects.filter(stored=True).values_list("path", flat=True).iterator()


def _secret() -> str | None:
    """Return the secret key if it is this home's own, None where the environment has it."""
    return None if env_str("VBATCH_SECRET_KEY") else settings.SECRET_KEY


def _manifest() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": __version__,
        "made_at": timezone.now().isoformat(timespec="seconds"),
        "secret_key": key_digest(settings.SECRET_KEY),
    }


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    archive.addfile(_entry(name, len(data)), io.BytesIO(data))


def _add_file(archive: tarfile.TarFile, name: str, written: Written) -> None:
    try:
        size, source = storage.size(name), storage.opened(name)
    except FileNotFoundError:
        written.missing.append(name)
        return
    with source:
        archive.addfile(_entry(FILES + name, size), source)
    written.files += 1
    written.bytes += size


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o600, int(time.time())
    return entry


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who made a file: it means nothing elsewhere."""
    return _entry(entry.name, entry.size)
