"""What a project may use: its own limits, the server's where it has none, and the count of its requests."""

import math
from dataclasses import dataclass

from django.conf import settings
from django.db import connection

from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError

_MINUTE = 60_000_000  # microseconds
RATE_LIMITED = "rate_limit_exceeded"

# A full bucket of N requests that refills at N a minute, kept as one number: when it will be full again. One statement
# takes a request, and the row's lock makes it exact between processes.
_TAKE = """
    INSERT INTO vbatch_site_requestbucket AS bucket (project_id, full_at) VALUES (%(project)s, {now} + %(step)s)
    ON CONFLICT (project_id) DO UPDATE SET full_at = GREATEST(bucket.full_at, {now}) + %(step)s
    WHERE GREATEST(bucket.full_at, {now}) + %(step)s - {now} <= %(size)s
    RETURNING full_at - {now}
"""
_LOOK = "SELECT full_at - {now} FROM vbatch_site_requestbucket WHERE project_id = %(project)s"
_NOW = "(EXTRACT(EPOCH FROM statement_timestamp()) * 1000000)::bigint"


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


def take_request(project: Project) -> Rate | None:
    """Count one request of a project; return how it stands, None without a limit."""
    limit = limit_of(project, "requests_per_minute")
    if limit is None:
        return None
    # Whole microseconds, and a bucket that holds exactly `limit` steps of them: no rounding lets one more in.
    step = max(1, round(_MINUTE / limit))
    size = limit * step
    values = {"project": project.pk, "step": step, "size": size}
    with connection.cursor() as cursor:
        cursor.execute(_TAKE.format(now=_NOW), values)
        if taken := cursor.fetchone():
            return Rate(limit, (size - taken[0]) // step, taken[0] / 1e6, None)
        cursor.execute(_LOOK.format(now=_NOW), values)
        full_in = max(0, cursor.fetchone()[0])
    return Rate(limit, 0, full_in / 1e6, max(0, full_in + step - size) / 1e6)
