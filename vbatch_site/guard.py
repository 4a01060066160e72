"""Run a program whose whole process tree ends when it does, or when its starter does.

    python guard.py GRACE_SECONDS ORPHAN_SECONDS PROGRAM [ARGUMENT ...]

Standard input is the leash: the starter holds its other end, so it closes however the starter dies. vLLM and
django-q2 start processes of their own, which nobody would stop after a kill -9 of their parent. The guard is a session
of its own with all that it runs: Ctrl-C in a terminal is for the starter, which stops its children in order, and a
guard that is killed itself leaves a number under which its starter finds the rest (`clear`). Standard library only,
because one of these stands beside every child.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# A process may start another one between two looks, so all that is left is killed again and again.
_ROUNDS = 100
_ROUND_SECONDS = 0.02

# A process that has this variable with another value than the guard is left alone, with all below it: a service that
# was started by a cluster and shall outlive it.
OUTLIVES = "VBATCH_OUTLIVES"


def start(
    grace_seconds: float, program: list[str], *, orphan_seconds: float | None = None, **options: object
) -> "subprocess.Popen[bytes]":
    """Start a program under guard; it stops on SIGTERM, and on this process's death.

    From the polite signal to the kill it has `grace_seconds`, or `orphan_seconds` when this process is dead.
    """
    orphaned = grace_seconds if orphan_seconds is None else orphan_seconds
    command = [sys.executable, "-S", __file__, str(grace_seconds), str(orphaned), *program]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **options)  # type: ignore[call-overload,no-any-return]  # noqa: S603


def clear(guard: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of an ended guard's session: one that was killed could not do it."""
    if (guard.poll() or 0) >= 0:
        return
    for _ in range(_ROUNDS):
        left = _session(guard.pid)
        if not left:
            return
        _kill(left)


def _session(number: int) -> list[int]:
    """Return the processes of a session; its number is not given out again while there are any."""
    return [pid for pid, fields in _processes() if int(fields[3]) == number and fields[0] != "Z"]


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yield each process's id and its fields in /proc from the state on: state, parent, group, session, ..."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name before them may hold spaces and brackets.
                yield int(entry.name), (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue


def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    time.sleep(_ROUND_SECONDS)


def _descendants(root: int) -> list[int]:
    """Return the process ids below one, from /proc, without those that shall outlive it."""
    children: dict[int, list[int]] = {}
    for pid, fields in _processes():
        children.setdefault(int(fields[1]), []).append(pid)
    found, todo = [], [root]
    own = os.environ.get(OUTLIVES)
    while todo:
        below = [pid for pid in children.get(todo.pop(), []) if _outlives(pid) in (None, own)]
        found += below
        todo += below
    return found


def _outlives(pid: int) -> str | None:
    """Return what a process was started with in OUTLIVES, None without it."""
    start = f"{OUTLIVES}=".encode()
    try:
        for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if pair.startswith(start):
                return pair[len(start) :].decode(errors="replace")
    except OSError:
        return None
    return None


def _reap() -> None:
    while True:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                return
        except ChildProcessError:
            return


def _kill_tree() -> None:
    """Kill everything below this process; orphans are below it too, because it is their subreaper."""
    for _ in range(_ROUNDS):
        _reap()
        left = _descendants(os.getpid())
        if not left:
            return
        _kill(left)


def main() -> int:
    """Guard one program; return its exit status."""
    grace, orphaned, program = float(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    reader, writer = os.pipe()
    for end in (reader, writer):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(  # noqa: S603
        program,
        stdin=subprocess.DEVNULL,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
    )
    leash: list[int] = [sys.stdin.fileno()]
    deadline: float | None = None
    while child.poll() is None:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([reader, *leash], [], [], wait)
        asked = 0
        if leash and leash[0] in ready and not os.read(leash[0], 1):
            leash, asked, grace = [], 1, orphaned
        if reader in ready:
            asked += sum(byte in (signal.SIGTERM, signal.SIGINT) for byte in os.read(reader, 512))
        if asked and deadline is None:
            deadline = time.monotonic() + grace
            child.terminate()
            asked -= 1
        if asked or (deadline is not None and time.monotonic() >= deadline):
            break
    status = child.poll()
    _kill_tree()
    if status is None:
        return 128 + signal.SIGKILL
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
