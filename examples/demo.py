"""From nothing to two finished batches: start a server, run 20 chat requests and 20 embeddings, print, stop.

Run by `make demo`. Uses a new home in a temporary folder unless VBATCH_HOME is set.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from openai import OpenAI

ROOT = Path(__file__).resolve().parent.parent
CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
ENDED = ("completed", "failed", "expired", "cancelled")
START_SECONDS = 60
BATCH_SECONDS = 480  # loading an engine on two cores takes half a minute, and this runs two

QUESTIONS = [
    "What is the capital of France?", "How many legs does a spider have?", "What colour is the sky?",
    "Name a fruit that is yellow.", "What is two plus three?", "Which planet do we live on?",
    "What do bees make?", "What is the opposite of hot?", "Name an animal that can fly.",
    "What is frozen water called?", "Who wrote Hamlet?", "What is the largest ocean?",
    "Name a musical instrument.", "What do plants need to grow?", "How many days are in a week?",
    "What is the fastest land animal?", "Name a primary colour.", "What metal is liquid at room temperature?",
    "What is the boiling point of water in Celsius?", "Name a language spoken in Brazil.",
]  # fmt: skip


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(env: dict[str, str]) -> Iterator[str]:
    """Run a server for the length of the block; yield its base URL."""
    log_path = Path(env["VBATCH_HOME"]) / "demo.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen([sys.executable, "manage.py", "serve"], cwd=ROOT, env=env, stdout=log, stderr=log)
    base = f"http://127.0.0.1:{env['VBATCH_PORT']}"
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"demo: the server did not start:\n{log_path.read_text(errors='replace')[-2000:]}")
            try:
                urllib.request.urlopen(f"{base}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield base
    finally:
        tree = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        process.wait()
    left = psutil.wait_procs(tree, timeout=5)[1]
    if left:
        raise SystemExit(f"demo: processes were left running: {left}")


def run(client: OpenAI, name: str, endpoint: str, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Upload, create, poll, download; return the answers in the order of the questions."""
    lines = [
        json.dumps({"custom_id": str(i), "method": "POST", "url": endpoint, "body": body}) for i, body in enumerate(bodies)
    ]
    file = client.files.create(file=(f"{name}.jsonl", "\n".join(lines).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
    say(f"{name}: uploaded {file.id}, created {batch.id}")
    deadline, shown = time.monotonic() + BATCH_SECONDS, ""
    while batch.status not in ENDED:
        if time.monotonic() > deadline:
            raise SystemExit(f"demo: {batch.id} is still {batch.status} after {BATCH_SECONDS} s")
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        now = f"{name}: {batch.status}, {counts.completed if counts else 0} of {counts.total if counts else 0} answered"
        if now != shown:
            say(now)
            shown = now
    if batch.error_file_id:
        say(client.files.content(batch.error_file_id).text)
    if batch.output_file_id is None:
        raise SystemExit(f"demo: {batch.id} ended {batch.status} without an answer: {batch.errors}")
    answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    answers.sort(key=lambda answer: int(answer["custom_id"]))
    if len(answers) != len(bodies):
        raise SystemExit(f"demo: {len(answers)} of {len(bodies)} requests were answered")
    return [answer["response"]["body"] for answer in answers]


def main() -> None:
    """Run the demonstration."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vbatch-demo-") as temporary:
        home = os.environ.get("VBATCH_HOME") or temporary
        Path(home).mkdir(parents=True, exist_ok=True)
        env = {
            **os.environ,
            "VBATCH_HOME": home,
            "VBATCH_PORT": str(free_port()),
            "VBATCH_AUTH": "required",
            # The models are on disk; a look at the hub would only cost time where there is no network.
            "HF_HUB_OFFLINE": "1",
            # Eager mode starts in a third of the time, which is most of what a demonstration takes.
            "VBATCH_VLLM_ARGS": os.environ.get("VBATCH_VLLM_ARGS", "--enforce-eager --max-model-len 2048"),
            "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"),
        }
        prepared = ROOT / "var" / "models"
        if prepared.is_dir() and not (Path(home) / "models").exists():
            (Path(home) / "models").symlink_to(prepared)
        manage = [sys.executable, "manage.py"]
        with server(env) as base:
            say(f"server: {base}")
            issued = subprocess.run(
                [*manage, "create_api_key", "demo"], cwd=ROOT, env=env, check=True, capture_output=True, text=True
            )
            client = OpenAI(base_url=f"{base}/v1", api_key=issued.stdout.strip())
            chats = run(
                client,
                "chat",
                "/v1/chat/completions",
                [
                    {"model": CHAT_MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 32, "temperature": 0}
                    for text in QUESTIONS
                ],
            )
            vectors = run(
                client,
                "embeddings",
                "/v1/embeddings",
                [{"model": EMBEDDING_MODEL, "input": text} for text in QUESTIONS],
            )
        for question, chat, vector in zip(QUESTIONS, chats, vectors, strict=True):
            answer = " ".join(chat["choices"][0]["message"]["content"].split())[:100]
            numbers = vector["data"][0]["embedding"]
            say(f"{question}\n    {answer}\n    {len(numbers)} numbers: {', '.join(f'{n:.4f}' for n in numbers[:4])}, ...")
        say(f"demo: {len(chats)} chat answers and {len(vectors)} embeddings in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
