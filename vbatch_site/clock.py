"""The time that all hosts agree on: the database's. The clocks of hosts differ, and are set."""

import time
from datetime import datetime, timedelta

from django.db import connection
from django.utils import timezone

_KNOWN_SECONDS = 60.0  # for which the steady clock goes on from an answer; it stands still while a machine sleeps

_answer: tuple[datetime, float] | None = None  # the database's last, and the steady clock when it came


def ask() -> datetime:
    """Ask the database what time it is."""
    global _answer
    with connection.cursor() as cursor:
        cursor.execute("SELECT statement_timestamp()")
        at: datetime = cursor.fetchone()[0]
    _answer = at, time.monotonic()
    return at


def now() -> datetime:
    """Return the database's time by its last answer to this process; this host's own where that is long ago."""
    if _answer is not None:
        at, then = _answer
        since = time.monotonic() - then
        if since < _KNOWN_SECONDS:
            return at + timedelta(seconds=since)
    return timezone.now()
