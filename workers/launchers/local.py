"""Run services as processes of this host. Pure: no Django.

Each is a session of its own that no guard above it stops, so that it outlives the web server and the clusters. Its
process is found again by id and start time, which the database and the service's folder keep.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from vbatch_site import guard
from workers.launchers import JOB, TIME_IS_UP, Known, Order, Phase, Program, Sight, end_of, sight_of, stat

_SECRETS = ("DATABASE_URL", "VBATCH_METRICS_TOKEN", "VBATCH_SECRET_KEY")


class LocalLauncher:
    """This host. An order waits in its folder until `start` is called for it."""

    def submit(self, order: Order, folder: Path) -> str:
        """Return the id; nothing runs yet, because its GPUs may be taken."""
        return f"local-{folder.name.rpartition('-')[2]}"

    def start(self, job: Known) -> Sight:
        """Start a job's process."""
        environment = {name: value for name, value in os.environ.items() if name not in _SECRETS}
        environment |= {guard.OUTLIVES: job.folder.name, "CUDA_VISIBLE_DEVICES": ",".join(job.gpus)}
        with (job.folder / "start.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-S", str(JOB), str(job.folder)],
                env=environment,
                cwd=JOB.parents[2],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _started.append(process)
        found = stat(process.pid)
        return Sight(phase=Phase.BUILDING, pid=process.pid, process_started=found[1] if found else None)

    def look(self, jobs: Sequence[Known]) -> dict[str, Sight]:
        """Return how the jobs of this host are."""
        _reap()
        return {job.job_id: self._look(job) for job in jobs}

    def _look(self, job: Known) -> Sight:
        said = sight_of(job.folder, is_local=True)
        pid = job.pid or said.pid
        if pid is None:
            return Sight(phase=Phase.WAITING)
        is_over = job.ends_at is not None and datetime.now(UTC) >= job.ends_at
        if not Program(pid, job.process_started).is_alive():
            if is_over:
                return Sight(phase=Phase.COMPLETED, why=TIME_IS_UP)
            return end_of(job.folder) or Sight(phase=Phase.FAILED, why="Its process was killed.")
        if is_over:
            self.stop(job)
        found = stat(pid)
        return Sight(
            phase=said.phase,
            host=said.host,
            url=said.url,
            pid=pid,
            process_started=job.process_started or (found[1] if found else None),
            ends_at=job.ends_at,
        )

    def stop(self, job: Known) -> None:
        """Ask a job's process to end; it stops its engine, and kills it after a grace time."""
        if job.pid is not None and Program(job.pid, job.process_started).is_alive():
            try:
                os.kill(job.pid, signal.SIGTERM)
            except ProcessLookupError:
                return

    def kill(self, job: Known) -> None:
        """End a job's process at once: its engine's guard sees that it is gone and kills what is left."""
        if job.pid is not None and Program(job.pid, job.process_started).is_alive():
            try:
                os.killpg(job.pid, signal.SIGKILL)
            except ProcessLookupError:
                return


_started: list["subprocess.Popen[bytes]"] = []


def _reap() -> None:
    """Take note of ended children, which would stay zombies for as long as this process lives."""
    for process in list(_started):
        if process.poll() is not None:
            _started.remove(process)
