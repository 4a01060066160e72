"""Run two batches on the real sample models through the official OpenAI client, and print the answers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI
from openai.types import Batch

ROOT = Path(__file__).resolve().parents[1]
MANAGE = [sys.executable, str(ROOT / "manage.py")]

CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# Seconds. An engine starts in half a minute on a quiet machine and is given three times that, twice.
READY_TIMEOUT = 120
BATCHES_TIMEOUT = 480
# Longer than the server takes to give its own children up.
STOP_TIMEOUT = 60
POLL_SECONDS = 2

# Compiling would pay for itself in a long run; here it is most of the time. The keys and values take 1 GiB.
QUICK_START = {"VBATCH_VLLM_ARGS": "--enforce-eager --max-model-len 2048", "VLLM_CPU_KVCACHE_SPACE": "1"}

ANSWER_CHARACTERS = 100
NUMBERS_SHOWN = 4

ENDED = {"completed", "failed", "expired", "cancelled"}

QUESTIONS = [
    "What is the capital of France?",
    "Name three colours.",
    "What is water made of?",
    "Why is the sky blue?",
    "How many days are in a week?",
    "What do bees make?",
    "Give me a synonym for happy.",
    "What is the largest planet of the solar system?",
    "Who wrote Romeo and Juliet?",
    "What is two plus two?",
    "What is the opposite of cold?",
    "Name an animal that can fly.",
    "What is a library?",
    "What is the boiling point of water in Celsius?",
    "Say hello in Spanish.",
    "What season comes after winter?",
    "What does a clock measure?",
    "Name a programming language.",
    "What is photosynthesis?",
    "Give me one tip for sleeping well.",
]


class DemoFailed(Exception):
    """The demo can't go on; the text says why."""


@contextmanager
def working_home() -> Iterator[Path]:
    """Give the home the caller named, or one that is removed again."""
    named = os.environ.get("VBATCH_HOME", "").strip()
    if named:
        yield Path(named).expanduser().resolve()
        return
    home = Path(tempfile.mkdtemp(prefix="vbatch-demo-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def free_port() -> int:
    """Return a port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def manage(*arguments: str, environment: dict[str, str]) -> str:
    """Run a management command and return what it prints."""
    done = subprocess.run(
        [*MANAGE, *arguments], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode != 0:
        raise DemoFailed(f"manage.py {arguments[0]} ended with status {done.returncode}")
    return done.stdout.strip()


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Return what the process has started so far."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def left_over(home: Path, seen: list[psutil.Process]) -> list[psutil.Process]:
    """Return processes of the server that still run: those it started and those that name its home."""
    found = {process.pid: process for process in seen}
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(home) in " ".join(process.cmdline()):
                found[process.pid] = process
        except psutil.Error:
            continue
    alive = []
    for process in found.values():
        try:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
        except psutil.NoSuchProcess:
            continue
    return alive


@contextmanager
def server(home: Path, port: int, environment: dict[str, str]) -> Iterator[None]:
    """Run the server for the length of the block, and check that it leaves nothing behind."""
    log = home / "demo-server.log"
    with log.open("ab") as output:
        # Its own session, so that Ctrl-C reaches this program only and the server is stopped in order.
        process = subprocess.Popen(
            [*MANAGE, "serve"], env=environment, cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
    seen: list[psutil.Process] = []
    try:
        wait_until_ready(process, port, log)
        yield
    finally:
        seen = descendants(psutil.Process(process.pid)) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise DemoFailed(f"the server did not stop within {STOP_TIMEOUT} s") from None
        finally:
            # The last of the server's processes may need a moment to leave the process table.
            deadline = time.monotonic() + 10
            while (left := left_over(home, seen)) and time.monotonic() < deadline:
                time.sleep(0.1)
            names = [f"{each.pid} {' '.join(each.cmdline())[:80]}" for each in left]
            for each in left:
                each.kill()
    if names:
        raise DemoFailed(f"the server left processes behind: {'; '.join(names)}")


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server answers its health check."""
    deadline = time.monotonic() + READY_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:  # noqa: S310
                if answer.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    last = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise DemoFailed("the server did not become ready; it said:\n" + "\n".join(last))


def chat_lines() -> list[dict[str, Any]]:
    """Return the chat requests."""
    return [
        {
            "custom_id": f"chat-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": CHAT_MODEL,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 40,
                "temperature": 0,
            },
        }
        for number, question in enumerate(QUESTIONS)
    ]


def embedding_lines() -> list[dict[str, Any]]:
    """Return the embedding requests."""
    return [
        {
            "custom_id": f"embedding-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": EMBEDDING_MODEL, "input": question},
        }
        for number, question in enumerate(QUESTIONS)
    ]


def submit(client: OpenAI, endpoint: Any, lines: list[dict[str, Any]]) -> Batch:
    """Upload the requests and create their batch."""
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    file = client.files.create(file=("requests.jsonl", content), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")
    print(f"{endpoint}: file {file.id}, batch {batch.id}", flush=True)
    return batch


def wait_for(client: OpenAI, batches: list[Batch]) -> list[Batch]:
    """Poll the batches until they have ended, and print each change."""
    said: dict[str, str] = {}
    started = time.monotonic()
    while time.monotonic() - started < BATCHES_TIMEOUT:
        batches = [client.batches.retrieve(batch.id) for batch in batches]
        for batch in batches:
            counts = batch.request_counts
            progress = f"{counts.completed} of {counts.total} done, {counts.failed} failed" if counts else ""
            line = f"{batch.endpoint}: {batch.status}, {progress}"
            if said.get(batch.id) != line:
                said[batch.id] = line
                print(f"{time.monotonic() - started:5.0f} s  {line}", flush=True)
        if all(batch.status in ENDED for batch in batches):
            return batches
        time.sleep(POLL_SECONDS)
    raise DemoFailed(f"the batches did not end within {BATCHES_TIMEOUT} s")


def answers(client: OpenAI, batch: Batch) -> dict[str, Any]:
    """Download what was answered, by custom_id; errors are printed."""
    if batch.errors is not None:
        for problem in batch.errors.data or []:
            print(f"{batch.endpoint}: line {problem.line}: {problem.message}")
    if batch.error_file_id:
        print(client.files.content(batch.error_file_id).text)
    if not batch.output_file_id:
        return {}
    lines = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    return {line["custom_id"]: line["response"]["body"] for line in lines if line["response"]["status_code"] == 200}


def show(chat: dict[str, Any], embeddings: dict[str, Any]) -> None:
    """Print every answer."""
    print(f"\n{CHAT_MODEL}")
    for number, question in enumerate(QUESTIONS):
        body = chat.get(f"chat-{number}")
        text = " ".join(body["choices"][0]["message"]["content"].split()) if body else "(no answer)"
        print(f"  {question} -> {text[:ANSWER_CHARACTERS]}")
    print(f"\n{EMBEDDING_MODEL}")
    for number, question in enumerate(QUESTIONS):
        body = embeddings.get(f"embedding-{number}")
        vector = body["data"][0]["embedding"] if body else []
        first = ", ".join(f"{value:.4f}" for value in vector[:NUMBERS_SHOWN])
        print(f"  {question} -> {len(vector)} numbers: {first}, ...")


def run(home: Path) -> bool:
    """Do it all, and tell whether every request was answered."""
    port = free_port()
    environment = {
        **os.environ,
        "VBATCH_HOME": str(home),
        "VBATCH_PORT": str(port),
        "VBATCH_AUTH": "required",
        # The sample models are on disk; asking a hub for them would only cost time.
        "HF_HUB_OFFLINE": "1",
        **{name: os.environ.get(name, value) for name, value in QUICK_START.items()},
    }
    print("Preparing the sample models ...", flush=True)
    home.mkdir(parents=True, exist_ok=True)
    print(manage("prepare_samples", environment=environment), flush=True)
    print(f"Starting the server on port {port} ...", flush=True)
    with server(home, port, environment):
        key = manage("create_api_key", "demo", environment=environment)
        with OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key) as client:
            batches = wait_for(
                client,
                [
                    submit(client, "/v1/chat/completions", chat_lines()),
                    submit(client, "/v1/embeddings", embedding_lines()),
                ],
            )
            chat, embeddings = (answers(client, batch) for batch in batches)
        show(chat, embeddings)
    answered, asked = len(chat) + len(embeddings), 2 * len(QUESTIONS)
    print(f"\n{answered} of {asked} requests answered; everything is stopped. `make serve` starts a server that stays.")
    return answered == asked


def main() -> int:
    """Run the demo and return its exit status."""
    started = time.monotonic()
    try:
        with working_home() as home:
            good = run(home)
    except DemoFailed as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped.", file=sys.stderr)
        return 130
    print(f"Took {time.monotonic() - started:.0f} s.")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
