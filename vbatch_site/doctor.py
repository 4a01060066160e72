"""Look at the installation and say what is wrong with it and what to do. Rooms register what they can look at.

Each finding is one line and holds no secret. What can't be told is unknown, and nothing that fails here keeps the
rest from being said.
"""

import resource
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from django.conf import settings
from django.core import checks
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from vbatch_site import database

OK, WARNING, FAILED, UNKNOWN = "ok", "warning", "failed", "unknown"

GIB = 1 << 30
_LOW_DISK = 5 * GIB  # bytes; a batch of 200 MB takes three times that while it ends
_FULL_DISK = GIB // 2
_FEW_FILES = 4096  # descriptors; each stream of a live answer takes two
_BUSY = 0.9  # of the database's connections
_OLDEST_POSTGRES = 14  # that Django 5.2 takes
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line."""

    name: str
    state: str
    said: str
    todo: str = ""


_looks: list[tuple[str, Callable[[], Iterable[Finding]]]] = []


def register(name: str, look: Callable[[], Iterable[Finding]]) -> None:
    """Add something to look at."""
    _looks.append((name, look))


def examine() -> Iterable[Finding]:
    """Yield all findings."""
    for name, look in _looks:
        try:
            yield from look()
        except DatabaseError:
            yield Finding(name, UNKNOWN, "can't be told without the database")
        except Exception as error:
            yield Finding(name, FAILED, f"can't be looked at: {one_line(error)}")


def one_line(error: object) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def look_at_database() -> Iterable[Finding]:
    """Look whether it answers, at its version, its connections and its migrations."""
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT current_setting('server_version'), pg_database_size(current_database()),"
                " current_setting('max_connections')::int, (SELECT count(*) FROM pg_stat_activity"
                " WHERE backend_type = 'client backend')"
            )
            version, size, most, used = cursor.fetchone()
    except DatabaseError as error:
        log = settings.VBATCH_HOME / "postgres" / "log"
        todo = f"Start it and check DATABASE_URL; the embedded one's log is {log}."
        yield Finding("database", FAILED, database.failure or one_line(error), todo)
        return
    said = f"PostgreSQL {version.split()[0]}, {size / GIB:.2f} GiB, {used} of {most} connections"
    if int(version.split(".")[0].split()[0]) < _OLDEST_POSTGRES:
        yield Finding("database", FAILED, said, f"Use PostgreSQL {_OLDEST_POSTGRES} or newer.")
    elif used > _BUSY * most:
        yield Finding("database", WARNING, said, "Raise max_connections, or run fewer processes.")
    else:
        yield Finding("database", OK, said)
    executor = MigrationExecutor(connection)
    pending = len(executor.migration_plan(executor.loader.graph.leaf_nodes()))
    if pending:
        yield Finding("migrations", FAILED, f"{pending} pending", "Run manage.py migrate; serve does it at its start.")
    else:
        yield Finding("migrations", OK, "all applied")


def look_at_clock() -> Iterable[Finding]:
    """Hold this host's clock against the database's: what is written down here is timed by it."""
    with connection.cursor() as cursor:
        before = time.time()
        cursor.execute("SELECT extract(epoch FROM clock_timestamp())::float8")
        there = cursor.fetchone()[0]
    off = there - (before + time.time()) / 2
    said = f"{abs(off):.2f} s {'behind' if off > 0 else 'ahead of'} the database's"
    todo = "Synchronize the clocks of all hosts (chrony, systemd-timesyncd)."
    if abs(off) > settings.VBATCH_LEASE_SECONDS / 2:
        yield Finding("clock", FAILED, said, todo)
    elif abs(off) > 1:
        yield Finding("clock", WARNING, said, todo)
    else:
        yield Finding("clock", OK, said)


def look_at_disk() -> Iterable[Finding]:
    """Look at the room under VBATCH_HOME, and at how many files a process may open."""
    usage = shutil.disk_usage(settings.VBATCH_HOME)
    said = f"{usage.free / GIB:.1f} of {usage.total / GIB:.1f} GiB free at {settings.VBATCH_HOME}"
    state = FAILED if usage.free < _FULL_DISK else WARNING if usage.free < _LOW_DISK else OK
    todo = "Delete files, shorten their lives, or set VBATCH_HOME to a larger disk."
    yield Finding("disk", state, said, "" if state == OK else todo)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < _FEW_FILES:
        yield Finding("open files", WARNING, f"at most {most}", f"Raise the hard limit to {_FEW_FILES} (ulimit -Hn).")
    else:
        yield Finding("open files", OK, "no limit" if most == resource.RLIM_INFINITY else f"at most {most}")


def look_at_settings() -> Iterable[Finding]:
    """Run Django's checks: those for a deployment too where others than this host can connect."""
    is_open = settings.VBATCH_HOST not in _LOOPBACK
    found = checks.run_checks(include_deployment_checks=is_open)
    for message in found:
        if message.is_silenced() or message.level < checks.WARNING:
            continue
        state = FAILED if message.is_serious() else WARNING
        yield Finding("settings", state, f"{one_line(message.msg)} ({message.id})", one_line(message.hint or ""))
    if not found:
        where = "for others to use" if is_open else f"on {settings.VBATCH_HOST} only"
        yield Finding("settings", OK, f"fit for a server {where}")
