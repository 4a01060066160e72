"""Session locks on batches: held while a process works on one, and gone with it however it dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b

from django.db import connection

# Held by whoever removes files that rows led to, and by a backup, which copies what rows lead to.
REMOVING = "removing files"


def lock_key(name: str) -> int:
    """Return the number under which Postgres knows a lock of this name."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)


@contextmanager
def batch_lock(name: str) -> Iterator[bool]:
    """Try to take the lock of this name; yield whether it is ours until the block ends."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [lock_key(name)])
        mine = bool(cursor.fetchone()[0])
    # The lock is the session's: whoever gives up old connections before slow work must keep this one.
    closes_at = connection.close_at
    if mine:
        connection.close_at = None
    try:
        yield mine
    finally:
        if mine:
            connection.close_at = closes_at
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [lock_key(name)])
