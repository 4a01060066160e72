"""A start that can't work says what is wrong and what to do, in one line."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from vbatch_site.tests.servers import ROOT, Server


def _serve(env: dict[str, str]) -> tuple[int, str]:
    """Return the exit status and what was said of a start that should not come far."""
    done = subprocess.run(
        [sys.executable, "manage.py", "serve"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120
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
