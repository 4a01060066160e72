"""Submit a file of requests, wait for the batch, and write what was answered.

    python examples/batch.py requests.jsonl answers.jsonl

Reads OPENAI_BASE_URL and OPENAI_API_KEY. Exits with 0 if every request was answered. Needs the package `openai`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from openai import OpenAI
from openai.types import Batch

ENDED = ("completed", "failed", "expired", "cancelled")
POLL_SECONDS = 2


def submit(client: OpenAI, path: Path) -> Batch:
    """Upload a file and create its batch; the endpoint is the one that its first line names."""
    with path.open("rb") as content:
        endpoint = json.loads(content.readline())["url"]
        content.seek(0)
        file = client.files.create(file=content, purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def wait(client: OpenAI, batch: Batch) -> Batch:
    """Poll until the batch has ended."""
    while batch.status not in ENDED:
        time.sleep(POLL_SECONDS)
        batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        print(batch.status, f"{counts.completed} of {counts.total}" if counts else "", file=sys.stderr)
    return batch


def main() -> int:
    """Run it, and return the exit status."""
    source, target = (Path(name) for name in sys.argv[1:3])
    client = OpenAI()
    batch = wait(client, submit(client, source))
    for problem in (batch.errors and batch.errors.data) or []:
        print(f"line {problem.line}: {problem.message} ({problem.code})", file=sys.stderr)
    if batch.output_file_id:
        # Streamed: an output file can have hundreds of megabytes.
        with client.files.with_streaming_response.content(batch.output_file_id) as answer:
            answer.stream_to_file(target)
    if batch.error_file_id:
        for line in client.files.content(batch.error_file_id).iter_lines():
            print(line, file=sys.stderr)
    counts = batch.request_counts
    return 0 if batch.status == "completed" and counts and not counts.failed else 1


if __name__ == "__main__":
    sys.exit(main())
