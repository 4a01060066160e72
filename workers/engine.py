"""One vLLM server as a child process: start, watch, stop. Pure: no Django."""

import asyncio
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from vbatch_site import guard
from vbatch_site.ports import free_port
from workers import grace
from workers.client import EngineClient

# Weights of a large model come from a slow disk or a hub; a load that takes longer than this is stuck.
LOAD_SECONDS = 3600.0
_POLL_SECONDS = 0.1
_TAIL_BYTES = 64 << 10


class EngineError(Exception):
    """The engine could not be started: a sentence for people, and whether another try may help."""

    def __init__(self, message: str, *, is_retriable: bool) -> None:
        super().__init__(message)
        self.is_retriable = is_retriable


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to start."""

    name: str
    source: str
    arguments: tuple[str, ...]
    kind: str  # "vllm" or "sim"
    log: Path
    endpoints: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def split_arguments(*texts: str) -> tuple[str, ...]:
    """Return the arguments of several settings, later ones last, so that they win."""
    return tuple(argument for text in texts for argument in shlex.split(text))


def check_source(source: str) -> None:
    """Refuse a folder that can't be a model before an engine spends half a minute to find out; raise EngineError."""
    if not source.startswith(("/", "./", "../", "~")):
        return
    folder = Path(source).expanduser()
    if folder.is_file() and folder.suffix == ".gguf":
        return
    if not folder.is_dir():
        raise EngineError(f"There is no folder {source}.", is_retriable=False)
    if not any((folder / name).exists() for name in ("config.json", "params.json")):
        raise EngineError(f"The folder {source} is not a model: it has no config.json.", is_retriable=False)


def command(spec: EngineSpec, python: str) -> list[str]:
    """Return what starts an engine, without the address to listen on."""
    module = "vllm.entrypoints.openai.api_server" if spec.kind == "vllm" else "workers.sim"
    program = [python, "-m", module, "--model", spec.source, "--served-model-name", spec.name]
    # Live requests go before lines of batches (workers/priority.py).
    program += ["--disable-uvicorn-access-log", "--scheduling-policy", "priority"]
    if spec.kind == "vllm":
        # Cached tokens in the answers' usage show what the order of the plan is worth.
        program.append("--enable-prompt-tokens-details")
    return [*program, *spec.arguments]


class EngineProcess:
    """A running engine and the way to talk to it."""

    def __init__(self, spec: EngineSpec) -> None:
        self.spec = spec
        self.api_key = secrets.token_urlsafe(24)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.load_seconds = 0.0
        self.max_model_len: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The guard's process id, None before the start."""
        return self._process.pid if self._process else None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    async def survives(self) -> bool:
        """Return whether the process lives after a lost connection; a dying one gets a moment to be gone."""
        for _ in range(10):
            if not self.is_alive:
                return False
            await asyncio.sleep(0.05)
        return True

    def start(self) -> None:
        """Start the process; raise EngineError when there is nothing to start."""
        if self.spec.kind == "vllm":
            check_source(self.spec.source)
        program = command(self.spec, sys.executable)
        program += ["--host", "127.0.0.1", "--port", str(self.port)]
        # The key travels in the environment: arguments are readable by every user of the machine.
        environment = {**os.environ, **self.spec.environment, "VLLM_API_KEY": self.api_key}
        if "--enable-sleep-mode" in self.spec.arguments:
            environment["VLLM_SERVER_DEV_MODE"] = "1"  # vLLM serves /sleep and /wake_up only then
        for name in ("DATABASE_URL", "VBATCH_METRICS_TOKEN", "VBATCH_SECRET_KEY"):
            environment.pop(name, None)
        self.spec.log.parent.mkdir(parents=True, exist_ok=True)
        with self.spec.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = grace.start(program, environment, log)

    async def wait_ready(self) -> None:
        """Return once the engine answers; raise EngineError when it dies or takes too long."""
        started = time.monotonic()
        async with EngineClient(self.url, self.api_key, timeout_seconds=5) as client:
            while not await client.is_healthy():
                if not self.is_alive:
                    raise EngineError(self._last_words(), is_retriable=True)
                if time.monotonic() - started > LOAD_SECONDS:
                    raise EngineError(f"The engine was not ready after {LOAD_SECONDS:.0f} s.", is_retriable=False)
                await asyncio.sleep(_POLL_SECONDS)
            self.max_model_len = await client.max_model_len()
        self.load_seconds = time.monotonic() - started

    def stop(self) -> None:
        """Stop the process and all it started; return when they are gone."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(grace.STOP_SECONDS + 4)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        guard.clear(process)
        if process.stdin:
            process.stdin.close()

    def kill(self) -> None:
        """Stop without grace: a second SIGTERM makes the guard kill the tree."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
            self._process.send_signal(signal.SIGTERM)
        self.stop()

    def _last_words(self) -> str:
        """Return the line of the log that best says why the engine ended."""
        try:
            with self.spec.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start, end - _TAIL_BYTES))
                text = log.read().decode(errors="replace")
        except OSError:
            text = ""
        lines = [re.sub(r"^\([^)]*\)\s*|\x1b\[[0-9;]*m", "", line).strip() for line in text.splitlines()]
        # The root cause of a chain of exceptions is printed first; pydantic's is on the line after its name.
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if re.match(r"^(\w+\.)*\w*(Error|Exception|Exit)\b.*:", line):
                said = after if "validation error" in line else line
                break
        else:
            said = next((line for line in reversed(lines) if line), "it said nothing")
        return f"The engine could not load the model: {said[:500]}"
