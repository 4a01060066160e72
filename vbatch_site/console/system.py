"""The system page: which parts of the installation are up, and what waits for them."""

import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.db.models import Count, Max, Min, Q
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django_q.models import OrmQ, Task

from vbatch_site.console import charts, registry
from vbatch_site.console.dashboard import free_bytes
from vbatch_site.console.pages import DASHBOARD_SECONDS, page, show
from vbatch_site.console.registry import Component
from vbatch_site.templatetags.console import size

_SILENT_SECONDS = 300  # several times what lies between two runs of the schedule
_MIGRATIONS_SECONDS = 60  # between two looks at the migrations, which read a hundred files


@page()
def system(request: HttpRequest) -> HttpResponse:
    """Show the components and the task queues."""
    context = {
        "title": "System",
        "components": registry.components(),
        "queues": _queues(),
        "facts": _facts(),
        "controls": registry.controls(request),
        "seconds": DASHBOARD_SECONDS,
    }
    return show(request, "console/site/system.html", context, part="console/site/_system.html")


def components() -> Iterable[Component]:
    """Return the parts that this room knows: the web, the database, the clusters, the disk."""
    yield Component("Web", "up", "answers this page")
    yield _database()
    yield _migrations()
    yield from _clusters()
    free = free_bytes()
    yield Component("Storage", "unknown" if free is None else "up", f"{size(free)} free" if free is not None else "")


def _database() -> Component:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('server_version'), pg_database_size(current_database())")
            version, used = cursor.fetchone()
    except DatabaseError as error:
        return Component("Database", "down", str(error))
    return Component("Database", "up", f"PostgreSQL {version.split()[0]}, {size(used)}")


def _migrations() -> Component:
    pending = _pending(int(time.monotonic() // _MIGRATIONS_SECONDS))
    return Component("Migrations", "down" if pending else "up", f"{pending} pending" if pending else "all applied")


@lru_cache(maxsize=1)
def _pending(minute: int) -> int:
    executor = MigrationExecutor(connection)
    return len(executor.migration_plan(executor.loader.graph.leaf_nodes()))


def _clusters() -> Iterable[Component]:
    """Return the default cluster, by what it finished last: the schedule gives it something to do all the time.

    django-q2 keeps its own signs of life in a cache that another process does not see.
    """
    url = reverse("admin:django_q_success_changelist")
    last = Task.objects.aggregate(at=Max("stopped"))["at"]
    if last is None:
        yield Component("Task cluster", "unknown", "has finished nothing yet", url)
        return
    silent = (timezone.now() - last).total_seconds()
    detail = f"finished its last task {charts.duration(max(silent, 1))} ago"
    yield Component("Task cluster", "up" if silent < _SILENT_SECONDS else "unknown", detail, url)


def _queues() -> list[dict[str, Any]]:
    """Return each queue's length, the tasks that a worker has taken, and how long the first has waited."""
    now = timezone.now()
    # A task that nobody took has the moment in which it was queued for the end of its lock.
    ready = Q(lock__lte=now)
    found = (
        OrmQ.objects.order_by()
        .values("key")
        .annotate(ready=Count("pk", filter=ready), taken=Count("pk", filter=~ready), oldest=Min("lock", filter=ready))
    )
    rows = {row["key"]: {**row, "name": row["key"]} for row in found}
    empty = {"ready": 0, "taken": 0, "oldest": None}
    return [rows.get(name, {"name": name, **empty}) for name in sorted({"default", "gpu", *rows})]


def _facts() -> list[tuple[str, str]]:
    return [
        ("Engine", settings.VBATCH_ENGINE),
        ("Launcher", settings.VBATCH_LAUNCHER),
        ("Keys", settings.VBATCH_AUTH),
        ("Completion windows", ", ".join(settings.VBATCH_COMPLETION_WINDOWS)),
        ("Engine slots here", str(settings.VBATCH_GPU_WORKERS)),
    ]
