"""What a project may use: its own limits, the server's where it has none, and the count of its requests."""

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.db import connection

from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError

_MINUTE = 60_000_000  # microseconds
RATE_LIMITED = "rate_limit_exceeded"

_NOW = "(EXTRACT(EPOCH FROM statement_timestamp()) * 1000000)::bigint"

# When a bucket will be full again, or now where it is; what is further off than a bucket takes was so before the
# database's clock was set back.
_FULL_AT = f"""
    CASE WHEN bucket.full_at BETWEEN {_NOW} AND {_NOW} + {2 * _MINUTE} THEN bucket.full_at ELSE {_NOW} END
"""

# A full bucket of N requests that refills at N a minute, kept as one number: when it will be full again. One statement
# takes a request, and the row's lock makes it exact between processes.
_TAKE = f"""
    INSERT INTO vbatch_site_requestbucket AS bucket (project_id, full_at) VALUES (%(project)s, {_NOW} + %(step)s)
    ON CONFLICT (project_id) DO UPDATE SET full_at = {_FULL_AT} + %(step)s
    WHERE {_FULL_AT} + %(step)s - {_NOW} <= %(size)s
    RETURNING full_at - {_NOW}
"""  # noqa: S608 (text of our own)
_LOOK = f"SELECT full_at - {_NOW} FROM vbatch_site_requestbucket WHERE project_id = %(project)s"  # noqa: S608

# Sends a statement with its parameters and returns the rows.
Fetch = Callable[[str, Any], Awaitable[list[tuple[Any, ...]]]]


def limit_of(project: Project, name: str) -> int | None:
    """Return a limit of a project by its field's name, None when there is none."""
    own: int | None = getattr(project, name)
    return (settings.VBATCH_PROJECT_LIMITS.get(name) if own is None else own) or None


def lock(project: Project) -> None:
    """Let one transaction at a time count what a project has; rows that refer to the project are not held up."""
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)


@dataclass(frozen=True, slots=True)
class Rate:
    """How a project stands with its requests; times in seconds."""

    limit: int
    remaining: int
    reset: float
    retry_after: float | None

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers (contract.md 7.6)."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": spell(self.reset),
        }

    def refusal(self) -> ApiError:
        """Return the 429."""
        wait = self.retry_after or 0.0
        message = (
            f"Rate limit reached for requests per minute. Limit: {self.limit:,} / min. "
            f"Please try again in {spell(wait)}."
        )
        return too_many(message, wait)


def too_many(message: str, wait: float) -> ApiError:
    """Return a 429 that says when to come back, in seconds from now."""
    headers = {"retry-after": str(max(1, math.ceil(wait))), "retry-after-ms": str(max(1, math.ceil(wait * 1000)))}
    return ApiError(message, kind="requests", code=RATE_LIMITED, http_status=429, headers=headers)


def spell(seconds: float) -> str:
    """Return a length of time as OpenAI's headers spell it: `120ms`, `8.64s`, `1m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    text = f"{rest:.2f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{text}s" if minutes else f"{text}s"


class _Bucket:
    """A project's allowance in the words of the statements."""

    def __init__(self, project: Project, limit: int) -> None:
        self.limit = limit
        # Whole microseconds, and a bucket that holds exactly `limit` steps of them: no rounding lets one more in.
        self.step = max(1, round(_MINUTE / limit))
        self.size = limit * self.step
        self.values = {"project": project.pk, "step": self.step, "size": self.size}

    @classmethod
    def of(cls, project: Project) -> "_Bucket | None":
        limit = limit_of(project, "requests_per_minute")
        return cls(project, limit) if limit is not None else None

    def taken(self, full_in: int) -> Rate:
        return Rate(self.limit, (self.size - full_in) // self.step, full_in / 1e6, None)

    def refused(self, full_in: int) -> Rate:
        full_in = max(0, full_in)
        return Rate(self.limit, 0, full_in / 1e6, max(0, full_in + self.step - self.size) / 1e6)


def take_request(project: Project) -> Rate | None:
    """Count one request of a project; return how it stands, None without a limit."""
    bucket = _Bucket.of(project)
    if bucket is None:
        return None
    with connection.cursor() as cursor:
        cursor.execute(_TAKE, bucket.values)
        if taken := cursor.fetchone():
            return bucket.taken(taken[0])
        cursor.execute(_LOOK, bucket.values)
        return bucket.refused(cursor.fetchone()[0])


async def take_live_request(project: Project, fetch: Fetch) -> Rate | None:
    """Do the same on an event loop, with its own way to ask the database."""
    bucket = _Bucket.of(project)
    if bucket is None:
        return None
    if taken := await fetch(_TAKE, bucket.values):
        return bucket.taken(taken[0][0])
    return bucket.refused((await fetch(_LOOK, bucket.values))[0][0])
