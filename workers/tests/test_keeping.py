"""What an operator keeps: a backup of a running server comes to life elsewhere, and a killed one mends itself."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from vbatch_site.tests.servers import ROOT, Server, chat_line, wait_until

pytestmark = pytest.mark.slow

FAST, SLOW = 40, 12


def _manage(env: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


def _postgres(home: Path) -> tuple[psutil.Process, str]:
    """Return the process and the URL of a home's embedded database."""
    lines = (home / "postgres" / "postmaster.pid").read_text().splitlines()
    return psutil.Process(int(lines[0])), f"postgresql://postgres@/vbatch?host={lines[4] or home / 'postgres'}"


@pytest.fixture(scope="module")
def copy(sim_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, Any], Path]]:
    """A server restored from a backup of another that had a batch half done; the batch, and the backup."""
    folder = tmp_path_factory.mktemp("keeping")
    source = folder / "backup.tar"
    sim_server.wait(sim_server.create([chat_line("warm")]))
    # The fast lines are answered before the backup, the slow ones are in flight.
    lines = [chat_line(f"fast{i}", f"kept fast {i}") for i in range(FAST)]
    lines += [chat_line(f"slow{i}", f"kept slow {i} [[sim:slow:8]]") for i in range(SLOW)]
    batch_id = sim_server.create(lines)
    wait_until(lambda: sim_server.batch(batch_id)["request_counts"]["completed"] == FAST)
    # And stay so, however long the backup takes.
    engines = sim_server.running("workers.sim")
    for engine in engines:
        engine.suspend()
    try:
        made = _manage(sim_server.env, "backup", str(source))
        batch = sim_server.batch(batch_id)
    finally:
        for engine in engines:
            engine.resume()
    assert made.returncode == 0, made.stderr
    assert "secret key" in made.stderr
    assert batch["status"] == "in_progress", "the backup was not made while it ran"
    sim_server.request("POST", f"/v1/batches/{batch_id}/cancel")
    # Into an embedded database from one that is not; the key goes on working.
    server = Server(folder / "home", database="none", DATABASE_URL="")
    server.key = sim_server.key
    restored = _manage(server.env, "restore", str(source))
    assert restored.returncode == 0, restored.stderr
    with server:
        yield server, batch, source
    server.kill_services()


def test_a_batch_in_flight_is_finished_by_the_restored_server_and_no_line_is_lost_or_doubled(
    copy: tuple[Server, dict[str, Any], Path],
) -> None:
    server, before, _ = copy
    batch = server.wait(before["id"])
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": FAST + SLOW, "completed": FAST + SLOW, "failed": 0}
    output, errors = server.lines(batch)
    assert sorted(line["custom_id"] for line in output) == sorted(
        [f"fast{i}" for i in range(FAST)] + [f"slow{i}" for i in range(SLOW)]
    )
    assert not errors
    # What had its answer kept it.
    seen = [text for text in server.requests_seen() if text.startswith("kept")]
    assert sorted(text.split()[1] for text in seen) == ["slow"] * SLOW
    # What was sealed and stored before can be read here.
    assert server.request("GET", f"/v1/files/{batch['input_file_id']}/content")[0] == 200
    assert (server.home / "secret_key").stat().st_mode & 0o077 == 0


def test_a_backup_that_takes_long_is_not_ended_as_a_stuck_session(sim_server: Server, tmp_path: Path) -> None:
    backup = [sys.executable, "manage.py", "backup", str(tmp_path / "backup.tar")]
    with psycopg.connect(sim_server.database, application_name="psql") as person:
        person.execute("LOCK TABLE workers_livedemand IN ACCESS EXCLUSIVE MODE")
        with subprocess.Popen(backup, cwd=ROOT, env=sim_server.env, stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda: sim_server.query("SELECT 1 FROM pg_stat_activity WHERE application_name = 'pg_dump'"))
            sim_server.manage("shell", "-v0", "-c", "from vbatch_site import sessions; sessions.end_stuck(1.0)")
            assert process.poll() is None
            person.rollback()
            _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said


def test_a_backup_is_refused_where_there_is_something_or_when_it_is_not_whole(
    copy: tuple[Server, dict[str, Any], Path], tmp_path: Path
) -> None:
    server, _, source = copy
    running = _manage(server.env, "restore", str(source))
    assert (running.returncode, len(running.stderr.splitlines())) == (1, 1)
    assert "Already running" in running.stderr
    # The database has tables already, whatever the home has.
    env = {**server.env, "VBATCH_HOME": str(tmp_path / "other"), "DATABASE_URL": _postgres(server.home)[1]}
    full = _manage(env, "restore", str(source))
    assert (full.returncode, len(full.stderr.splitlines())) == (1, 1)
    assert "--replace" in full.stderr
    cut = tmp_path / "cut.tar"
    cut.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    half = _manage(env, "restore", "--replace", str(cut))
    assert (half.returncode, len(half.stderr.splitlines())) == (1, 1)
    assert server.request("GET", "/v1/batches")[2]["data"]
    with tarfile.open(source) as archive:
        assert archive.getnames()[:3] == ["manifest.json", "database.dump", "secret_key"]


def test_a_server_that_was_killed_with_its_database_says_what_it_set_right_and_goes_on(
    copy: tuple[Server, dict[str, Any], Path],
) -> None:
    server, _, _ = copy
    batch_id = server.create(chat_line(f"k{i}", f"killed {i} [[sim:slow:10]]") for i in range(3))
    wait_until(lambda: sum("killed" in text for text in server.requests_seen()) == 3)
    postgres, url = _postgres(server.home)
    old = time.time() - 7200
    with psycopg.connect(url) as connection:
        # As if an upload and a part had been cut off two hours ago.
        connection.execute(
            "INSERT INTO files_file (id, project_id, purpose, filename, bytes, path, created_at, deleted_at)"
            " SELECT 'file-cut', id, 'vision', 'f', 3, 'ut/file-cut', now() - interval '2 h', now() + interval '22 h'"
            " FROM vbatch_site_project LIMIT 1"
        )
    cut, temporary = server.home / "files" / "ut" / "file-cut", server.home / "tmp" / "tmpcut"
    cut.parent.mkdir(exist_ok=True)
    for path in (cut, temporary):
        path.write_bytes(b"cut")
        os.utime(path, (old, old))
    server.kill_tree()
    with suppress(psutil.NoSuchProcess):
        postgres.kill()
        postgres.wait(60)
    said_before = len(server.log.read_text())
    server.start()
    said = server.log.read_text()[said_before:]
    for repair in ("PostgreSQL was killed", "temporary files", "upload or joining", "workers of this host"):
        assert sum(repair in line for line in said.splitlines()) == 1, said
    assert not cut.exists()
    assert not temporary.exists()
    batch = server.wait(batch_id)
    assert batch["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    # A start after an orderly end has nothing to say.
    server.stop()
    said_before = len(server.log.read_text())
    server.start()
    assert "repaired" not in server.log.read_text()[said_before:]


def test_the_doctor_says_one_line_for_each_part_and_goes_on_without_the_database(
    copy: tuple[Server, dict[str, Any], Path], tmp_path: Path
) -> None:
    server, _, _ = copy
    # It may have been started a moment ago, and a server without a worker is not well.
    with psycopg.connect(_postgres(server.home)[1], autocommit=True) as connection:
        alive = "SELECT 1 FROM workers_worker WHERE stopped_at IS NULL AND seen_at > now() - interval '5 s'"
        wait_until(lambda: connection.execute(alive).fetchone())
    found = json.loads(_manage(server.env, "doctor", "--json").stdout)
    states = {finding["name"]: finding["state"] for finding in found["findings"]}
    assert found["ok"], found
    for name in (
        "database",
        "migrations",
        "clock",
        "disk",
        "storage",
        "server",
        "gpu workers",
        "input files",
        "models",
        "settings",
    ):
        assert states[name] in ("ok", "warning"), found
    # Here engines are simulated, which nobody should take for real.
    assert states["engine"] == "warning"
    assert states["GPU"] in ("ok", "unknown")
    env = {**server.env, "VBATCH_HOME": str(tmp_path / "other"), "DATABASE_URL": "postgresql://u:hidden@127.0.0.1:1/x"}
    down = _manage({**env, "VBATCH_HOST": "192.0.2.1"}, "doctor")
    assert down.returncode == 1
    assert "hidden" not in down.stdout + down.stderr
    lines = {line[9:25].strip(): line[:8].strip() for line in down.stdout.splitlines()}
    assert lines["database"] == "failed"
    assert lines["clock"] == lines["clusters"] == "unknown"
    assert lines["storage"] == "ok"
    # Others can connect, so the checks for that are made.
    assert lines["settings"] == "warning"
    embedded = {**env, "DATABASE_URL": "", "VBATCH_HOME": str(tmp_path / "broken")}
    (tmp_path / "broken" / "postgres").mkdir(parents=True)
    (tmp_path / "broken" / "postgres" / "something").write_text("")
    broken = _manage(embedded, "doctor")
    assert broken.returncode == 1
    assert any(line.startswith("failed   database") and "something" not in line for line in broken.stdout.splitlines())
