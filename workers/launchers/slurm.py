"""Run services as SLURM jobs, through sbatch, squeue, scancel and, where it works, sacct. Pure: no Django.

The folder of a service, the Python that runs this and this code must be at the same paths on the nodes.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workers.launchers import JOB, TIME_IS_UP, Known, LaunchError, Order, Phase, Sight, end_of, sight_of

_SECONDS = 30.0  # for one command; SLURM's own retry of an absent controller is longer
_SETTLE_SECONDS = 20.0  # a new job may not be listed at once

_RUNNING = {"RUNNING", "SUSPENDED", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "COMPLETING"}
_WHY = {
    "TIMEOUT": TIME_IS_UP,
    "NODE_FAIL": "Its node failed.",
    "OUT_OF_MEMORY": "It used more memory than it asked for.",
    "PREEMPTED": "SLURM gave its place to another job.",
    "BOOT_FAIL": "Its node did not start.",
    "DEADLINE": "SLURM's deadline passed.",
    "CANCELLED": "It was cancelled.",
}
# What the controller's absence looks like, as opposed to a request that it refuses.
_AWAY = ("Unable to contact", "Socket timed out", "Connection refused", "not responding", "configuration source")


class SlurmLauncher:
    """The cluster that the commands on this host speak to."""

    def submit(self, order: Order, folder: Path) -> str:
        """Hand in a job and return its id; raise LaunchError."""
        run = shlex.join([sys.executable, "-S", str(JOB), str(folder)])
        if order.nodes > 1:
            run = f"srun --ntasks-per-node=1 --kill-on-bad-exit=1 {run}"
        options = {
            "job-name": order.name,
            "nodes": order.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": order.cpu,
            "mem": order.memory,
            "time": order.minutes,
            "gres": f"gpu:{order.gpu}" if order.gpu else "",
            "account": order.account,
            "partition": order.partition,
            "qos": order.qos,
            "output": folder / "start.log",
            "chdir": JOB.parents[2],
            # The job gets its environment from the folder: this process's holds secrets.
            "export": "NIL",
        }
        command = ["sbatch", "--parsable", "--no-requeue"]
        command += [f"--{name}={value}" for name, value in options.items() if value]
        said = _run(command, f"#!/bin/sh\nexec {run}\n")
        return said.strip().split(";")[0]

    def look(self, jobs: Sequence[Known]) -> dict[str, Sight]:
        """Return how jobs are; nothing when the controller is away."""
        if not jobs:
            return {}
        try:
            # All of this user's jobs: squeue refuses a whole list when it has forgotten one of it.
            listed = json.loads(_run(["squeue", "--json", "--me"]))["jobs"]
        except (LaunchError, ValueError, KeyError):
            return {}
        found = {str(job["job_id"]): job for job in listed}
        return {job.job_id: self._sight(job, found.get(job.job_id)) for job in jobs}

    def _sight(self, job: Known, said: dict[str, Any] | None) -> Sight:
        if said is None:
            return end_of(job.folder) or _forgotten(job)
        states = _words(said["job_state"])
        ends_at = _time(said.get("end_time"))
        if states & set(_WHY) or "FAILED" in states or "COMPLETED" in states:
            return _end(states, job.folder)
        if states & _RUNNING:
            seen = sight_of(job.folder)
            return Sight(phase=seen.phase, host=seen.host or str(said.get("nodes", "")), url=seen.url, ends_at=ends_at)
        reason = said.get("state_reason") or ""
        return Sight(phase=Phase.WAITING, why="" if reason in ("None", "Priority") else f"SLURM: {reason}.")

    def stop(self, job: Known) -> None:
        """Cancel a job; raise LaunchError when SLURM can't be asked."""
        _run(["scancel", job.job_id])


def has_gpus() -> bool:
    """Return whether a node of the cluster has GPUs; raise LaunchError."""
    return "gpu" in _run(["sinfo", "--noheader", "--Format=gres:200"])


def _run(command: Sequence[str], text: str = "") -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not installed here.", is_request=False) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LaunchError(f"{command[0]} could not be run: {error}", is_request=False) from None
    if done.returncode:
        lines = [line.partition("error: ")[2] or line for line in done.stderr.strip().splitlines()]
        said = " ".join(lines)[:500]
        away = any(word in said for word in _AWAY)
        raise LaunchError(f"{command[0]}: {said}", is_request=command[0] == "sbatch" and not away)
    return done.stdout


def _words(state: str | list[str]) -> set[str]:
    """Return a job's states: one word until SLURM 22, a list of them from 23 on."""
    return {state} if isinstance(state, str) else set(state)


def _time(value: Any) -> datetime | None:
    """Return a time: seconds until SLURM 22, an object from 23 on; 0 for none."""
    if isinstance(value, dict):
        value = value.get("number") if value.get("set") and not value.get("infinite") else 0
    return datetime.fromtimestamp(value, UTC) if value else None


def _end(states: set[str], folder: Path) -> Sight:
    said = end_of(folder)
    if "COMPLETED" in states:
        return said or Sight(phase=Phase.COMPLETED)
    if "CANCELLED" in states:
        return Sight(phase=Phase.CANCELLED, why=_WHY["CANCELLED"])
    if "TIMEOUT" in states:
        return Sight(phase=Phase.COMPLETED, why=_WHY["TIMEOUT"])
    why = next((text for state, text in _WHY.items() if state in states), "")
    if not why:
        why = said.why if said is not None and said.why else "The job failed."
    return Sight(phase=Phase.FAILED, why=why)


def _forgotten(job: Known) -> Sight:
    """Return how a job ended that squeue no longer lists and that said nothing itself."""
    try:
        if time.time() - job.folder.stat().st_mtime < _SETTLE_SECONDS:
            return Sight(phase=Phase.WAITING)
    except OSError:
        pass
    try:
        said = _run(["sacct", "-X", "-n", "-P", "-o", "State", "-j", job.job_id]).split()
    except LaunchError:
        said = []
    if said:
        return _end({said[0]}, job.folder)
    return Sight(phase=Phase.FAILED, why="SLURM no longer knows the job, and it left no word of its end.")
