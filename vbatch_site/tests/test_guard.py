"""What runs under guard ends with the guard and with whoever started it."""

import os
import signal
import subprocess
import time

import psutil

from vbatch_site import guard
from vbatch_site.tests.servers import is_alive, wait_until

# Like vLLM: a program whose own children nobody stops when it is killed.
FAMILY = ["sh", "-c", "sleep 300 & sleep 300 & wait"]


def _family(started: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """Return the program and its children once they are there."""
    root = psutil.Process(started.pid)
    wait_until(lambda: len(root.children(recursive=True)) == 3)
    return root.children(recursive=True)


def _left(family: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in family if is_alive(process)]


def test_ctrl_c_in_the_starters_terminal_does_not_reach_what_is_guarded() -> None:
    started = guard.start(5, FAMILY)
    family = _family(started)
    assert os.getsid(started.pid) == started.pid
    assert {os.getpgid(p.pid) for p in family} == {started.pid}
    started.send_signal(signal.SIGTERM)
    started.wait(30)
    assert not _left(family)


def test_what_a_killed_guard_left_is_found_and_killed() -> None:
    started = guard.start(5, FAMILY)
    family = _family(started)
    started.kill()
    started.wait()
    guard.clear(started)
    assert not _left(family)


def test_without_its_starter_a_program_has_the_time_for_orphans() -> None:
    started = guard.start(
        60, ["sh", "-c", "trap '' TERM; sleep 300 & sleep 300 & while :; do wait; done"], orphan_seconds=0.2
    )
    family = _family(started)
    assert started.stdin is not None
    began = time.monotonic()
    started.stdin.close()
    started.wait(30)
    assert time.monotonic() - began < 30
    assert not _left(family)
