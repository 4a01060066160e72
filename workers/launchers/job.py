"""Run one service on the machine where it shall be: find a port, say where it is, start the engine, say how it ended.

    python job.py FOLDER

The folder is shared with the machine that asked. It holds `job.json` (what to start) and `key` (the engine's API key);
this program writes `place.json`, `log` and `end.json`. On several nodes SLURM starts it once on each; the first takes
the requests. Standard library only, because it may run with any Python that a node has.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from vbatch_site import ports
from workers import grace

PORT_TRIES = 5  # another program may take the port between our look and the engine's
_WAIT_SECONDS = 600.0  # for the first node to say where it is

_children: list["subprocess.Popen[bytes]"] = []
_asked_to_stop = False


def _on_signal(*_: object) -> None:
    global _asked_to_stop
    _asked_to_stop = True
    for child in _children:
        child.send_signal(signal.SIGTERM)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Put a file in place whole, readable by its owner only."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps(content))
    draft.replace(path)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # What a closed server leaves behind does not keep the next from listening.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True


def free_port(wanted: int = 0) -> int:
    """Return the wanted port if nobody has it, else any free one."""
    if wanted and _is_free(wanted):
        return wanted
    return ports.free_port("")


def _image(job: dict[str, Any], folder: Path, place: dict[str, Any]) -> list[str]:
    """Return the words that run a program in the job's image, which is fetched first if it is not a file."""
    image = job["image"]
    if not image:
        return []
    if "://" in image:
        store = Path(job["images"])
        store.mkdir(parents=True, exist_ok=True)
        kept = store / ("".join(c if c.isalnum() else "-" for c in image) + ".sif")
        if not kept.exists():
            _write(folder / "place.json", {**place, "phase": "building"})
            draft = kept.with_name(f".{os.getpid()}-{kept.name}")
            with (folder / "log").open("ab") as log:
                subprocess.run(["apptainer", "pull", str(draft), image], stdout=log, stderr=log, check=True)  # noqa: S603, S607
            draft.replace(kept)
        image = str(kept)
    return ["apptainer", "exec", *(["--nv"] if job["gpu"] else []), *job["image_arguments"], image]


def _other_nodes(rank: int, folder: Path, place: dict[str, Any]) -> dict[str, Any]:
    """Return where the first node is: it says so itself, and the others wait for it."""
    path = folder / "first.json"
    if rank == 0:
        first = {"address": place["host"], "port": free_port()}
        _write(path, first)
        return first
    deadline = time.monotonic() + _WAIT_SECONDS
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _run(program: list[str], environment: dict[str, str], log_path: Path) -> int:
    with log_path.open("ab") as log:
        child = grace.start(program, environment, log)
    _children.append(child)
    if _asked_to_stop:
        child.send_signal(signal.SIGTERM)
    status = child.wait()
    _children.remove(child)
    return status


def serve(folder: Path) -> int:
    """Run the engine; return its exit status."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    rank = int(os.environ.get("SLURM_PROCID", "0")) if job["nodes"] > 1 else 0
    environment = {**os.environ, **job["environment"], "VLLM_API_KEY": (folder / "key").read_text()}
    place = {"host": socket.gethostname(), "phase": "starting", "pid": os.getpid()}
    inside = _image(job, folder, place)
    extra: list[str] = []
    if job["nodes"] > 1:
        first = _other_nodes(rank, folder, place)
        extra = ["--nnodes", str(job["nodes"]), "--node-rank", str(rank)]
        extra += ["--master-addr", first["address"], "--master-port", str(first["port"])]
    if rank:
        return _run([*inside, *job["headless_program"], *extra], environment, folder / f"log.{rank}")
    status = 1
    for _ in range(PORT_TRIES):
        port = free_port(job["port"])
        _write(folder / "place.json", {**place, "port": port})
        listen = ["--host", job["listen"], "--port", str(port)]
        started = time.monotonic()
        status = _run([*inside, *job["program"], *listen, *extra], environment, folder / "log")
        # Only an engine that was kept from listening gets another try.
        if _asked_to_stop or status == 0 or _is_free(port) or time.monotonic() - started > _WAIT_SECONDS:
            break
    return status


def main() -> int:
    """Run the service and leave word of how it ended."""
    folder = Path(sys.argv[1])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _on_signal)
    status, why = 1, ""
    try:
        status = serve(folder)
    except (OSError, ValueError, KeyError, subprocess.CalledProcessError) as error:
        why = str(error)
    if int(os.environ.get("SLURM_PROCID", "0")) == 0:
        _write(folder / "end.json", {"status": status, "asked": _asked_to_stop, "why": why})
    return 0 if _asked_to_stop else status


if __name__ == "__main__":
    sys.exit(main())
