"""A simulated engine as a process, and the shortest way to talk to it."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vbatch_site.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
KEY = "sim-test-key"
MODEL = "sim-model"
# Generous: a busy machine starts Python slowly. Nothing waits that long when all is well.
PATIENCE_SECONDS = 60


class Reply:
    def __init__(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
        self.status = status
        self.raw = raw
        self.headers = headers

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Sim:
    """A running server and the shortest way to talk to it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def request(self, method: str, path: str, body: object = None, *, key: str | None = KEY) -> Reply:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if raw is not None else {}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, raw, headers)
            response = connection.getresponse()
            return Reply(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, path: str, body: object) -> Reply:
        return self.request("POST", path, body)

    def chat(self, text: str, **fields: object) -> Reply:
        return self.post("/v1/chat/completions", chat_body(text, **fields))

    def stats(self) -> dict[str, int]:
        stats: dict[str, int] = self.get("/sim/stats").json
        return stats

    def open_chat(self, text: str, **fields: object) -> socket.socket:
        """Send a chat and leave the connection open, the answer unread."""
        raw = json.dumps(chat_body(text, **fields)).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)
        connection.sendall(head.encode() + raw)
        return connection


def chat_body(text: str, **fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def command(port: int, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "workers.sim", "--host", "127.0.0.1", "--port", str(port)]
    return [*start, "--model", "org/sim", "--served-model-name", MODEL, *arguments]


def environment(**knobs: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VBATCH_SIM_", "VLLM_"))}
    return {**kept, "VLLM_API_KEY": KEY, **knobs}


@contextmanager
def serving(*arguments: str, wait: bool = True, **knobs: str) -> Iterator[Sim]:
    port = free_port()
    process = subprocess.Popen(command(port, *arguments), cwd=ROOT, env=environment(**knobs), stderr=subprocess.DEVNULL)
    sim = Sim(process, port)

    def is_up() -> bool:
        assert process.poll() is None, f"it ended with {process.returncode}"
        try:
            return sim.get("/health").status == 200 or not wait
        except OSError:
            return False

    try:
        until(is_up)
        yield sim
    finally:
        process.kill()
        process.wait()


def run_to_its_end(**knobs: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(free_port()),
        cwd=ROOT,
        env=environment(**knobs),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


def events(reply: Reply) -> list[str]:
    return [line.removeprefix("data: ") for line in reply.raw.decode().split("\n") if line.startswith("data: ")]
