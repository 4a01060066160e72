"""When a failed delivery is tried again. Pure: no Django."""

import random
from datetime import datetime, timedelta

GIVE_UP_AFTER = timedelta(hours=72)  # counted from the event or from a redelivery, as OpenAI does it
LONGEST_WAIT = timedelta(hours=12)
_FACTOR = 2.0
_JITTER = 0.2  # of a wait, either way: receivers that failed together are not all tried again at once


def next_attempt(now: datetime, tries: int, first_wait: float, give_up_at: datetime) -> datetime | None:
    """Return when to try again after so many failed tries, or None when it is too late; `first_wait` is in seconds."""
    if now >= give_up_at:
        return None
    wait = min(first_wait * _FACTOR ** min(tries - 1, 60), LONGEST_WAIT.total_seconds())
    wait *= random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 (no secret)
    # The last try falls on the end itself, however the waits before it came out.
    return min(now + timedelta(seconds=wait), give_up_at)
