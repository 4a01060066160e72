"""A start that can't work says what is wrong and what to do, in one line; a running one survives its parts."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from vbatch_site.tests.contract.forms import multipart, send_form
from vbatch_site.tests.servers import ROOT, Server, chat_line, wait_until


def _serve(env: dict[str, str]) -> tuple[int, str]:
    """Return the exit status and what was said of a start that should not come far."""
    done = subprocess.run(
        [sys.executable, "manage.py", "serve"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


def _is_one_line(said: str) -> bool:
    return len(said.strip().splitlines()) == 1 and "Traceback" not in said


def test_a_second_start_on_the_same_home_says_so(sim_server: Server) -> None:
    status, said = _serve({**sim_server.env, "VBATCH_PORT": "1"})
    assert status == 1
    assert "Already running" in said
    assert _is_one_line(said)


def test_a_port_in_use_is_named(new_home: Path) -> None:
    server = Server(new_home)
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        status, said = _serve(server.env)
    assert status == 1
    assert str(server.port) in said
    assert "VBATCH_PORT" in said
    assert _is_one_line(said)


def test_an_unreachable_database_is_named(new_home: Path) -> None:
    env = {**os.environ, "VBATCH_HOME": str(new_home), "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    status, said = _serve(env)
    assert status == 1
    assert "DATABASE_URL" in said
    assert _is_one_line(said)


def test_a_setting_that_makes_no_sense_is_named(new_home: Path) -> None:
    for name, value in (("VBATCH_ENGINE", "llama"), ("VBATCH_LEASE_SECONDS", "soon"), ("DATABASE_URL", "what?://x")):
        status, said = _serve({**os.environ, "VBATCH_HOME": str(new_home), name: value})
        assert status == 1
        assert name in said
        assert _is_one_line(said)


def test_a_home_that_is_a_file_is_named(tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.write_text("")
    status, said = _serve({**os.environ, "VBATCH_HOME": str(home)})
    assert status == 1
    assert "VBATCH_HOME" in said
    assert _is_one_line(said)


def test_a_web_process_that_dies_is_started_again(new_home: Path) -> None:
    with Server(new_home) as server:
        web = next(p for p in server.tree() if "uvicorn" in p.cmdline() and "guard.py" not in " ".join(p.cmdline()))
        web.kill()
        web.wait(10)
        wait_until(server.is_up, 30)


def test_the_death_of_the_root_ends_the_whole_tree(new_home: Path) -> None:
    server = Server(new_home)
    server.start()
    assert server.process is not None
    batch_id = server.create(chat_line(f"l{i}") for i in range(5))
    server.wait(batch_id)
    processes = server.tree()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    gone, alive = psutil.wait_procs(processes[1:], timeout=30)
    assert not [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_full_disk_refuses_an_upload_and_keeps_nothing(new_home: Path) -> None:
    # A file system of its own that is too small for the upload; as root, a quota would not hold.
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        if os.environ.get("CI"):
            pytest.fail("mounting a small file system needs root and unshare")
        pytest.skip("mounting a small file system needs root and unshare")
    new_home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(new_home)], check=True)
    try:
        with Server(new_home) as server:
            content = chat_line("a", "x" * 1000) * 12_000
            status, _, answer = send_form(server, multipart([("purpose", None, "batch"), ("file", "f", content)]))
            assert status == 507, answer
            assert answer["error"]["code"] == "storage_error"
            assert server.request("GET", "/v1/files")[2]["data"] == []
            assert server.wait(server.create(chat_line("b")))["status"] == "completed"
    finally:
        subprocess.run(["umount", "-l", str(new_home)], check=True)
