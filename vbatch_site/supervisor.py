"""The process tree of one machine: web, default cluster, gpu cluster, each under guard."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from django.conf import settings

from vbatch_site import guard

# From the polite signal to the kill: draining (workers/runner.py), committing and stopping an engine fit in, and the
# whole tree is gone in 15.
STOP_SECONDS = 13.0
RESTART_SECONDS = 2.0  # before a program that ended by itself soon after its start is started again
STEADY_SECONDS = 10.0  # one that ran for so long is started again at once: something from outside ended it


@dataclass
class Program:
    """One child of the tree."""

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None
    restart_at: float = 0.0
    started_at: float = 0.0

    def start(self) -> None:
        """Start it."""
        # The children start in another folder, where a relative path would lead elsewhere.
        environment = {**os.environ, "VBATCH_HOME": str(settings.VBATCH_HOME), **self.environment}
        self.started_at = time.monotonic()
        self.process = guard.start(STOP_SECONDS, list(self.command), env=environment, cwd=settings.BASE_DIR)

    def signal(self) -> None:
        """Ask it to stop; a second time makes it stop at once."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)


def cluster(name: str) -> Program:
    """Return the program that runs one django-q2 cluster."""
    return Program(f"{name} cluster", [sys.executable, "-m", "vbatch_site", "qcluster"], {"Q_CLUSTER_NAME": name})


def web(host: str, port: int) -> Program:
    """Return the program that serves HTTP."""
    command = [sys.executable, "-m", "uvicorn", "vbatch_site.asgi:application", "--host", host, "--port", str(port)]
    # Idle keep-alive connections must not hold up the stop.
    command += ["--no-access-log", "--log-level", "warning", "--timeout-graceful-shutdown", "5", "--lifespan", "off"]
    return Program("web", command, {})


class Supervisor:
    """Starts programs, starts them again when they end by themselves, and stops them all."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.programs = programs
        self.signals = 0

    def on_signal(self, *_: object) -> None:
        """Stop; a second signal stops at once."""
        self.signals += 1
        if self.signals > 1:
            for program in self.programs:
                program.signal()

    def start(self) -> None:
        """Start everything."""
        for program in self.programs:
            program.start()

    def watch(self, also: Callable[[], object]) -> Iterator[Program]:
        """Yield programs as they end by themselves, and start them again, until a signal comes.

        `also` is called each time round, ten times a second.
        """
        while not self.signals:
            also()
            now = time.monotonic()
            for program in self.programs:
                if program.process is None:
                    if now >= program.restart_at:
                        program.start()
                elif program.process.poll() is not None:
                    guard.clear(program.process)
                    yield program
                    steady = now - program.started_at >= STEADY_SECONDS
                    program.process, program.restart_at = None, now if steady else now + RESTART_SECONDS
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop everything; return when nothing is left."""
        for program in self.programs:
            program.signal()
        for program in self.programs:
            if program.process is not None:
                program.process.wait()
                guard.clear(program.process)


@contextmanager
def running(programs: Sequence[Program]) -> Iterator[Supervisor]:
    """Run programs for the length of a block."""
    supervisor = Supervisor(programs)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()
