"""A real SLURM for tests: munged, slurmctld and one slurmd in a folder and on ports of their own."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from vbatch_site.tests.servers import free_port, wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")

_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
SlurmUser={user}
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=4
SlurmdTimeout=10
MinJobAge=60
InactiveLimit=0
SlurmdParameters=config_overrides
OverTimeLimit=0
MailProg=/bin/true
MessageTimeout=3
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> list[str]:
    """Return the programs that a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Cluster:
    """One controller and one node of 16 pretended cores."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.env = {"SLURM_CONF": str(self.conf)}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._node: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Cluster":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the daemons and wait until the node is idle."""
        for name in ("munge", "state", "spool"):
            (self.folder / name).mkdir(mode=0o755, parents=True)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        self.conf.write_text(
            _CONF.format(
                host=socket.gethostname().split(".")[0],
                user=psutil.Process().username(),
                folder=self.folder,
                controller_port=free_port(),
                daemon_port=free_port(),
                memory=psutil.virtual_memory().total // (1 << 20),
            )
        )
        munge = self.folder / "munge"
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._spawn(["munged", "--foreground", "--force", *(f"--{k}={munge / v}" for k, v in files.items())])
        wait_until((munge / "socket").exists)
        self._controller = self._spawn(["slurmctld", "-D", "-f", str(self.conf)])
        self.start_node()

    def start_node(self) -> None:
        """Start the node's daemon and wait until the controller may use it."""
        self._node = self._spawn(["slurmd", "-D", "-f", str(self.conf)])
        wait_until(lambda: self.ask("sinfo", "-h", "-o", "%T").startswith(("idle", "mix", "alloc")), 120, 0.3)

    def kill_node(self) -> None:
        """Kill the node's daemon and everything that it started, as if its power were cut."""
        assert self._node is not None
        for process in [psutil.Process(self._node.pid), *self._steps()]:
            # What hung below one that was killed may have ended with it.
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._node.wait()

    @contextmanager
    def controller_away(self) -> Iterator[None]:
        """Stop the controller for the length of a block."""
        controller = psutil.Process(self._controller.pid)
        controller.suspend()
        try:
            yield
        finally:
            controller.resume()

    def stop(self) -> None:
        """End all jobs and daemons."""
        if self._node is not None and self._node.poll() is None:
            subprocess.run(["scancel", "--full", "-u", psutil.Process().username()], env=self._env(), check=False)  # noqa: S603, S607
            deadline = time.monotonic() + 10
            while self._steps() and time.monotonic() < deadline:
                time.sleep(0.1)
        for process in self._steps():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for daemon in reversed(self._processes):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def cancel_all(self) -> None:
        """End all jobs."""
        self.ask("scancel", "-u", psutil.Process().username())
        wait_until(lambda: not self._steps())

    def ask(self, *command: str) -> str:
        """Return what one of SLURM's commands prints, nothing when it fails."""
        done = subprocess.run(command, env=self._env(), stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
        return done.stdout.strip()

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.env, "PATH": _path()}

    def _spawn(self, command: list[str]) -> "subprocess.Popen[bytes]":
        with (self.folder / f"{command[0]}.out").open("ab") as log:
            process = subprocess.Popen(command, env=self._env(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603
        self._processes.append(process)
        return process

    def _steps(self) -> list[psutil.Process]:
        """Return what runs of this cluster's jobs, steps' daemons first."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            try:
                environment = process.environ()
                # The servers under test know the cluster too.
                is_ours = "SLURM_JOB_ID" in environment or process.name().startswith("slurmstepd")
                if is_ours and environment.get("SLURM_CONF") == str(self.conf):
                    found.append(process)
            except psutil.Error:
                continue
        return found
