"""Can work be done: each part of the installation is ok, failed or unknown, and what is unknown is not ok."""

from collections.abc import Callable
from datetime import datetime, timedelta
from enum import StrEnum

from django.db import DatabaseError, connection
from django.db.models import Max
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_safe
from django_q.models import Task

# The schedule gives the default cluster something to do once a minute.
_SILENT = timedelta(seconds=180)


class Verdict(StrEnum):
    """What is known of a part."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


Check = Callable[[datetime], Verdict]
_checks: dict[str, Check] = {}


def register(name: str, check: Check) -> None:
    """Add a part; a check that raises DatabaseError says nothing."""
    _checks[name] = check


def verdicts(now: datetime) -> dict[str, Verdict]:
    """Return what is known of each part."""
    found: dict[str, Verdict] = {}
    for name, check in _checks.items():
        try:
            found[name] = check(now)
        except DatabaseError:
            found[name] = Verdict.UNKNOWN
    return found


def overall(found: dict[str, Verdict]) -> Verdict:
    """Return failed when a part has, unknown when one is, else ok."""
    for verdict in (Verdict.FAILED, Verdict.UNKNOWN):
        if verdict in found.values():
            return verdict
    return Verdict.OK


def database(now: datetime) -> Verdict:
    """Look whether the database answers."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except DatabaseError:
        return Verdict.FAILED
    return Verdict.OK


def default_cluster(now: datetime) -> Verdict:
    """Look when the default cluster finished its last task; its own signs of life stay in its processes."""
    last = Task.objects.exclude(cluster="gpu").aggregate(at=Max("stopped"))["at"]
    if last is None:
        return Verdict.UNKNOWN
    return Verdict.OK if now - last < _SILENT else Verdict.FAILED


@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """Answer 200 when all parts are ok, 503 otherwise; `?exclude=NAME` leaves parts out."""
    excluded = request.GET.getlist("exclude")
    found = {name: verdict for name, verdict in verdicts(timezone.now()).items() if name not in excluded}
    status = overall(found)
    return JsonResponse({"status": status, "checks": found}, status=200 if status is Verdict.OK else 503)
