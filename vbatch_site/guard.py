"""Run a program whose whole process tree ends when it does, or when its starter does.

    python guard.py GRACE_SECONDS PROGRAM [ARGUMENT ...]

Standard input is the leash: the starter holds its other end, so it closes however the starter dies. vLLM and
django-q2 start processes of their own, which nobody would stop after a kill -9 of their parent. Standard library
only, because one of these stands beside every child.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

# A process that has this variable with another value than the guard is left alone, with all below it: a service that
# was started by a cluster and shall outlive it.
OUTLIVES = "VBATCH_OUTLIVES"


def command(grace_seconds: float, program: list[str]) -> list[str]:
    """Return the command that runs a program under guard; start it with a pipe as its standard input."""
    return [sys.executable, "-S", __file__, str(grace_seconds), *program]


def start(grace_seconds: float, program: list[str], **options: object) -> "subprocess.Popen[bytes]":
    """Start a program under guard; it stops on SIGTERM, on `release`, and on this process's death."""
    return subprocess.Popen(command(grace_seconds, program), stdin=subprocess.PIPE, **options)  # type: ignore[call-overload,no-any-return]  # noqa: S603


def _descendants(root: int) -> list[int]:
    """Return the process ids below one, from /proc, without those that shall outlive it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # The name may hold spaces and brackets; the parent's id is the second field after its last bracket.
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
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
    for _ in range(100):
        _reap()
        left = _descendants(os.getpid())
        if not left:
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.02)


def main() -> int:
    """Guard one program; return its exit status."""
    grace, program = float(sys.argv[1]), sys.argv[2:]
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
        # Out of the terminal's group: Ctrl-C is for the starter, which stops its children in order.
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
    )
    leash: list[int] = [sys.stdin.fileno()]
    deadline: float | None = None
    while child.poll() is None:
        wait = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([reader, *leash], [], [], wait)
        asked = 0
        if leash and leash[0] in ready and not os.read(leash[0], 1):
            leash, asked = [], 1
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
