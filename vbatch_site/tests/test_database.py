"""The embedded PostgreSQL: real servers, real users of them, and what happens when any is killed."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, LiteralString

import psutil
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

ROOT = Path(__file__).resolve().parents[2]
ORDINARY_USER = "nobody"
# Seconds for a server to stop or a process to say something.
PATIENCE = 60

# For the Python of another user, which knows nothing of this environment.
SITE_PACKAGES = sysconfig.get_paths()["purelib"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{SITE_PACKAGES}", "PYTHONDONTWRITEBYTECODE": "1"}

# Starts the database, says where it is, and stays until its input closes.
USER_PROGRAM = """
import sys
from pathlib import Path
from vbatch_site.database import DatabaseUnavailable, start
try:
    print(start(Path(sys.argv[1])), flush=True)
except DatabaseUnavailable as error:
    sys.exit(f"unavailable: {error}")
sys.stdin.read()
"""


class User:
    """A process that uses the database of a home."""

    def __init__(self, home: Path, **options: Any) -> None:
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-c", USER_PROGRAM, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=ENVIRONMENT,
            **options,
        )

    def url(self) -> str:
        """Wait until it has started and return what it got."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line.startswith("postgresql://"), self.error()
        return line

    def error(self) -> str:
        """Wait until it has ended and return its last words."""
        return self.process.communicate(timeout=PATIENCE)[1].strip()

    def leave(self) -> None:
        """End it in the ordinary way."""
        self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0

    def kill(self) -> None:
        """End it with no chance to say goodbye."""
        self.process.kill()
        self.process.communicate(timeout=PATIENCE)


Begin = Callable[..., User]


def servers(home: Path) -> list[psutil.Process]:
    """Return the PostgreSQL servers that run on a home."""
    found: dict[int, tuple[psutil.Process, int]] = {}
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and str(home / "postgres") in process.cmdline():
                found[process.pid] = process, process.ppid()
        except psutil.Error:
            continue
    # A child of a server looks like it until it has given itself a title.
    return [process for process, parent in found.values() if parent not in found]


def is_stopped(home: Path) -> bool:
    """Wait until no server runs on a home."""
    deadline = time.monotonic() + PATIENCE
    while servers(home) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not servers(home)


def one(url: str, query: LiteralString) -> Any:
    """Return the single value of a query."""
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Start users, and leave none of them nor their servers behind."""
    started: list[tuple[User, Path]] = []

    def _begin(home: Path, **options: Any) -> User:
        user = User(home, **options)
        started.append((user, home))
        return user

    yield _begin
    for user, home in started:
        if user.process.poll() is None:
            user.kill()
        for server in servers(home):
            with suppress(psutil.NoSuchProcess):
                server.kill()


@pytest.fixture
def ordinary(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder of an ordinary user's and the options that start a process as that user."""
    if os.geteuid() != 0:
        yield tmp_path, {}
        return
    user = pwd.getpwnam(ORDINARY_USER)
    folder = tmp_path / "ordinary"
    folder.mkdir()
    for above in [folder, *folder.parents]:
        if above.owner() == "root" and above != Path(above.root):
            above.chmod(above.stat().st_mode | 0o055)
    os.chown(folder, user.pw_uid, user.pw_gid)
    options: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    for python in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        with suppress(OSError):
            done = subprocess.run([python, "-c", "import psycopg"], check=False, env=ENVIRONMENT, cwd=ROOT, **options)
            if done.returncode == 0:
                yield folder, {**options, "executable": python}
                return
    reason = f"{ORDINARY_USER} may run no Python that has our packages"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def test_it_makes_our_database_and_says_where(tmp_path: Path, begin: Begin) -> None:
    url = begin(tmp_path).url()

    assert url == f"postgresql://postgres@/vbatch?host={tmp_path}/postgres"
    assert conninfo_to_dict(url) == {"user": "postgres", "dbname": "vbatch", "host": f"{tmp_path}/postgres"}
    assert one(url, "SELECT current_database()") == "vbatch"
    assert one(url, "SHOW max_connections") == "200"
    assert one(url, "SHOW shared_buffers") == "256MB"
    assert one(url, "SHOW server_encoding") == "UTF8"


def test_the_last_user_stops_it(tmp_path: Path, begin: Begin) -> None:
    first, second = begin(tmp_path), begin(tmp_path)
    assert first.url() == second.url()
    assert len(servers(tmp_path)) == 1

    first.leave()
    assert len(servers(tmp_path)) == 1
    second.leave()
    assert not servers(tmp_path)


def test_a_killed_user_no_longer_counts(tmp_path: Path, begin: Begin) -> None:
    killed, other = begin(tmp_path), begin(tmp_path)
    killed.url()
    other.url()

    killed.kill()
    other.leave()
    assert not servers(tmp_path)


def test_a_later_user_stops_what_killed_ones_left_running(tmp_path: Path, begin: Begin) -> None:
    killed = begin(tmp_path)
    killed.url()
    killed.kill()
    (before,) = servers(tmp_path)

    later = begin(tmp_path)
    later.url()
    assert servers(tmp_path) == [before]
    later.leave()
    assert not servers(tmp_path)


def test_what_was_committed_survives_kill_9_of_everything(tmp_path: Path, begin: Begin) -> None:
    user = begin(tmp_path)
    url = user.url()
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
    (server,) = servers(tmp_path)
    everything = [*server.children(recursive=True), server]
    user.kill()
    for process in everything:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)

    assert one(begin(tmp_path).url(), "SELECT number FROM kept") == 7


def test_it_is_started_again_after_kill_9_of_the_server_alone(tmp_path: Path, begin: Begin) -> None:
    begin(tmp_path).url()
    (server,) = servers(tmp_path)
    server.kill()

    assert one(begin(tmp_path).url(), "SELECT 1") == 1


def test_a_pid_file_with_the_number_of_another_process_is_stale(
    ordinary: tuple[Path, dict[str, Any]], begin: Begin
) -> None:
    home, options = ordinary
    user = begin(home, **options)
    user.url()
    (server,) = servers(home)
    user.kill()
    server.kill()
    assert is_stopped(home)
    # One that the server's user may signal, which is what PostgreSQL asks.
    as_user = {key: value for key, value in options.items() if key != "executable"}
    with subprocess.Popen(["sleep", "600"], **as_user) as other:
        try:
            pid_file = home / "postgres" / "postmaster.pid"
            lines = pid_file.read_text().splitlines()
            pid_file.write_text("\n".join([str(other.pid), *lines[1:]]) + "\n")

            assert one(begin(home, **options).url(), "SELECT 1") == 1
            assert other.poll() is None
        finally:
            other.kill()


def test_an_ordinary_user_runs_it(ordinary: tuple[Path, dict[str, Any]], begin: Begin) -> None:
    home, options = ordinary
    user = begin(home / "home", **options)

    assert one(user.url(), "SELECT current_database()") == "vbatch"
    user.leave()
    assert not servers(home / "home")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has anything to keep from others")
def test_root_before_an_ordinary_user_is_no_obstacle(
    tmp_path: Path, ordinary: tuple[Path, dict[str, Any]], begin: Begin
) -> None:
    folder, options = ordinary
    begin(tmp_path / "root").url()

    assert one(begin(folder / "home", **options).url(), "SELECT 1") == 1
    assert "can't be used (Permission denied)" in begin(tmp_path / "root", **options).error()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs two users")
def test_root_leaves_an_ordinary_users_database_alone(ordinary: tuple[Path, dict[str, Any]], begin: Begin) -> None:
    home, options = ordinary
    user = begin(home, **options)
    user.url()
    user.leave()
    owner = (home / "postgres").owner()

    assert f"belongs to user {owner}" in begin(home).error()
    assert (home / "postgres").owner() == owner
    begin(home, **options).url()


@pytest.mark.parametrize("name", ["long-" + "x" * 120, "with space", "ünïcode,comma", "it's"])
def test_a_path_that_no_socket_can_have(name: str, tmp_path: Path, begin: Begin) -> None:
    home = tmp_path / name
    user, other = begin(home), begin(home)
    url = user.url()

    socket_folder = Path(str(conninfo_to_dict(url)["host"]))
    assert socket_folder != home / "postgres"
    assert one(url, "SELECT current_database()") == "vbatch"
    assert other.url() == url
    user.leave()
    other.leave()
    assert not servers(home)
    shutil.rmtree(socket_folder)


def test_many_that_start_together_share_one(tmp_path: Path, begin: Begin) -> None:
    users = [begin(tmp_path) for _ in range(5)]

    assert len({user.url() for user in users}) == 1
    assert len(servers(tmp_path)) == 1
    for user in users:
        user.leave()
    assert not servers(tmp_path)


def test_an_initdb_that_was_killed_leaves_nothing_in_the_way(tmp_path: Path, begin: Begin) -> None:
    (tmp_path / "postgres.new").mkdir()
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")

    assert one(begin(tmp_path).url(), "SELECT 1") == 1
    assert not (tmp_path / "postgres.new").exists()


def test_a_fork_neither_counts_nor_stops_it(tmp_path: Path, begin: Begin) -> None:
    forks = "import os\nif os.fork() == 0: sys.exit(0)\nos.wait()\nprint('gone', flush=True)\n"
    program = USER_PROGRAM.replace("sys.stdin.read()", forks + "sys.stdin.read()")
    user = begin(tmp_path)
    user.url()
    forking = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    user.leave()
    assert forking.stdout is not None
    url = forking.stdout.readline().strip()
    assert forking.stdout.readline() == "gone\n"

    assert one(url, "SELECT 1") == 1
    forking.communicate(timeout=PATIENCE)
    assert not servers(tmp_path)


def test_a_home_that_was_deleted_does_not_keep_its_server(tmp_path: Path, begin: Begin) -> None:
    home = tmp_path / "home"
    user = begin(home)
    user.url()
    shutil.rmtree(home)

    user.leave()
    assert not servers(home)


def test_a_given_url_is_left_alone(tmp_path: Path) -> None:
    program = "from vbatch_site.database import ensure_url; import os; ensure_url(); print(os.environ['DATABASE_URL'])"
    given = {"DATABASE_URL": "postgresql://elsewhere/db", "VBATCH_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **given},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.strip() == given["DATABASE_URL"]
    assert not (tmp_path / "home").exists()


def is_one_line(text: str) -> bool:
    """Tell whether the text is a single line of an error of ours."""
    return text.startswith("unavailable: ") and len(text.splitlines()) == 1


def test_a_home_that_cannot_be_written(ordinary: tuple[Path, dict[str, Any]], begin: Begin) -> None:
    folder, options = ordinary
    folder.chmod(0o555)
    error = begin(folder, **options).error()
    folder.chmod(0o755)

    assert is_one_line(error)
    assert "Permission denied" in error
    assert "VBATCH_HOME" in error


def test_a_home_that_is_a_file(tmp_path: Path, begin: Begin) -> None:
    (tmp_path / "home").write_text("")
    error = begin(tmp_path / "home").error()

    assert is_one_line(error)
    assert "VBATCH_HOME" in error


@pytest.mark.parametrize("size", ["4m", "30m"])
def test_a_full_disk(size: str, tmp_path: Path, begin: Begin) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(tmp_path)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root and the right to mount")
    try:
        error = begin(tmp_path / "home").error()
        assert is_one_line(error)
        assert "is full; free some space" in error
        assert not (tmp_path / "home" / "postgres").exists()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_broken_data_folder(tmp_path: Path, begin: Begin) -> None:
    user = begin(tmp_path)
    user.url()
    user.leave()
    (tmp_path / "postgres" / "global" / "pg_control").write_bytes(b"")
    error = begin(tmp_path).error()

    assert is_one_line(error)
    assert "does not start" in error
    assert "backup" in error


def test_a_folder_of_something_else(tmp_path: Path, begin: Begin) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "letter.txt").write_text("dear")
    if os.geteuid() == 0:
        shutil.chown(tmp_path / "postgres", "pgserver")
    error = begin(tmp_path).error()

    assert is_one_line(error)
    assert "holds no PostgreSQL database" in error
    assert (tmp_path / "postgres" / "letter.txt").read_text() == "dear"


def test_a_folder_of_another_version(tmp_path: Path, begin: Begin) -> None:
    user = begin(tmp_path)
    user.url()
    user.leave()
    (tmp_path / "postgres" / "PG_VERSION").write_text("16\n")
    error = begin(tmp_path).error()

    assert is_one_line(error)
    assert "made by PostgreSQL 16" in error
