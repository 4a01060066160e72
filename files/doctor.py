"""Look whether bytes can be stored, durably, and read again."""

import os
import time
from collections.abc import Iterable

from files import storage
from vbatch_site.doctor import FAILED, OK, WARNING, Finding, one_line

_SLOW_SECONDS = 1.0  # for a few bytes: each upload and each result file waits as long


def look() -> Iterable[Finding]:
    """Store a few bytes as an upload is stored, fsync included, read them, and remove them."""
    name, data = f".doctor-{os.urandom(8).hex()}", os.urandom(64)
    started = time.monotonic()
    try:
        with storage.writing(name) as out:
            out.write(data)
        try:
            with storage.opened(name) as stream:
                same = stream.read() == data
        finally:
            storage.delete(name)
    except OSError as error:
        said = f"can't be written: {error.strerror or one_line(error)}"
        todo = "Free some space, give the folder files of VBATCH_HOME to this user, or check the bucket's keys."
        yield Finding("storage", FAILED, said, todo)
        return
    seconds = time.monotonic() - started
    said = f"written, synced and read in {seconds * 1000:.0f} ms"
    if not same:
        yield Finding("storage", FAILED, "gives back other bytes than it was given", "Check the disk or the bucket.")
    elif seconds > _SLOW_SECONDS:
        yield Finding("storage", WARNING, said, "Uploads and results wait for it: use a faster disk.")
    else:
        yield Finding("storage", OK, said)
