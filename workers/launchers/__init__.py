"""Start services somewhere, see how they are, stop them. Pure: no Django.

A launcher takes an order, which it writes into a folder that both sides see, and runs `job.py` on it: as a process of
this host (`local.py`) or as a SLURM job (`slurm.py`). What the job writes there, and what the launcher itself knows,
make a sight of the service.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

JOB = Path(__file__).with_name("job.py")

TIME_IS_UP = "Its time limit was reached."

_TAIL_BYTES = 256 << 10  # of a log, that are read to find its last lines


class LaunchError(Exception):
    """A service could not be started or stopped: a sentence for people, and whether the request was at fault."""

    def __init__(self, message: str, *, is_request: bool) -> None:
        super().__init__(message)
        self.is_request = is_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to start. Resources are those of one node."""

    name: str
    program: tuple[str, ...]
    environment: dict[str, str]
    headless_program: tuple[str, ...] = ()  # of all nodes but the first
    nodes: int = 1
    cpu: int = 1
    memory: str = ""
    minutes: int = 0  # 0: no end
    gpu: int = 0
    listen: str = "0.0.0.0"  # noqa: S104 (a SLURM node's engine is asked from outside; it wants a key)
    port: int = 0  # 0: any
    image: str = ""
    image_arguments: tuple[str, ...] = ()
    images: str = ""  # folder where fetched images are kept
    account: str = ""
    partition: str = ""
    qos: str = ""

    def write(self, folder: Path, key: str) -> None:
        """Put the order and the engine's key into a new folder that only its owner can read."""
        folder.mkdir(mode=0o700, parents=True)
        for name, text in (("key", key), ("job.json", json.dumps(asdict(self)))):
            (folder / name).touch(mode=0o600)
            (folder / name).write_text(text)


class Phase(Enum):
    """How far a job is."""

    WAITING = "waiting"
    BUILDING = "building"
    UP = "up"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_end(self) -> bool:
        """Whether the job is over."""
        return self in (Phase.COMPLETED, Phase.FAILED, Phase.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """How a job is now."""

    phase: Phase
    why: str = ""
    host: str = ""
    url: str = ""
    ends_at: datetime | None = None
    pid: int | None = None
    process_started: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a job that a launcher is asked about."""

    job_id: str
    folder: Path
    host: str = ""
    pid: int | None = None
    process_started: int | None = None
    ends_at: datetime | None = None
    gpus: tuple[str, ...] = ()


class Launcher(Protocol):
    """Where services run."""

    def submit(self, order: Order, folder: Path) -> str:
        """Hand in an order that was written to the folder and return the job's id; raise LaunchError."""

    def look(self, jobs: Sequence[Known]) -> dict[str, Sight]:
        """Return how jobs are by their ids, without those that nothing can be said of now."""

    def stop(self, job: Known) -> None:
        """Make a job end soon; one that has ended already is no error. Raises LaunchError."""


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def sight_of(folder: Path, *, is_local: bool = False) -> Sight:
    """Return what a running job says of itself."""
    place = _read(folder / "place.json") or {}
    if place.get("phase") != "starting" or not place.get("port"):
        return Sight(phase=Phase.BUILDING, host=place.get("host", ""), pid=place.get("pid"))
    order = _read(folder / "job.json") or {}
    listen = order.get("listen", "")
    anywhere = listen in ("", "0.0.0.0", "::", "localhost")  # noqa: S104 (compared, not bound)
    host = listen if not anywhere else "127.0.0.1" if is_local else place["host"]
    return Sight(phase=Phase.UP, host=place["host"], url=f"http://{host}:{place['port']}", pid=place.get("pid"))


def end_of(folder: Path) -> Sight | None:
    """Return how a job said that it ended, None when it did not say so."""
    end = _read(folder / "end.json")
    if end is None:
        return None
    if end["asked"]:
        return Sight(phase=Phase.CANCELLED, why="It was stopped.")
    if end["status"] == 0:
        return Sight(phase=Phase.COMPLETED)
    return Sight(phase=Phase.FAILED, why=end["why"] or f"The engine ended with status {end['status']}.")


def tail(folder: Path, lines: int) -> str:
    """Return the last lines of a job's logs: its starter's, then its engine's."""
    found: list[str] = []
    for name in ("start.log", "log"):
        try:
            with (folder / name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
                found += log.read().decode(errors="replace").splitlines()
        except OSError:
            continue
    return "\n".join(found[-lines:])


@dataclass(slots=True)
class Program:
    """A process id that can't be mistaken for another process that got it later."""

    pid: int
    started: int | None = field(default=None)

    def is_alive(self) -> bool:
        """Return whether that process runs; a zombie does not."""
        found = stat(self.pid)
        return found is not None and found[0] not in "ZX" and self.started in (None, found[1])


def stat(pid: int) -> tuple[str, int] | None:
    """Return a process's state and when it began, in ticks since the host did; None when it is gone."""
    try:
        # The name may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
