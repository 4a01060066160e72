"""Ask one question about each row of a CSV file, and write the file again with the answers in a new column.

    python examples/csv_batch.py in.csv out.csv --prompt "Translate into German: {text}"

{text} is the row's column of that name. What was begun is noted in out.csv.state: started again, the program goes on
with its batches instead of paying twice. After a change of the file or the prompt, or when rows failed, only the rows
concerned run (`continue_from`). Reads OPENAI_BASE_URL and OPENAI_API_KEY; needs the package `openai`. Exits with 0 if
every row has an answer.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from openai import APIStatusError, OpenAI
from openai.types import Batch

ENDED = ("completed", "failed", "expired", "cancelled")
POLL_SECONDS = 2
MOST_ROWS = 50_000  # of one batch


def read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the rows."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    return list(reader.fieldnames or []), rows


def requests(rows: list[dict[str, str]], options: argparse.Namespace) -> Iterator[str]:
    """Yield one line for each row."""
    for number, row in enumerate(rows, start=1):
        messages = [{"role": "system", "content": options.system}] if options.system else []
        messages.append({"role": "user", "content": options.prompt.format_map(row)})
        body = {"model": options.model, "messages": messages, "max_tokens": options.max_tokens, "temperature": 0}
        line = {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(line) + "\n"


def submit(client: OpenAI, content: str, earlier: str | None) -> Batch:
    """Create a batch; answers that an earlier one has are taken over."""
    file = client.files.create(file=("rows.jsonl", content.encode()), purpose="batch")
    wanted: dict[str, Any] = {
        "input_file_id": file.id,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"program": "csv_batch"},
    }
    try:
        return client.batches.create(**wanted, extra_body={"continue_from": earlier} if earlier else None)
    except APIStatusError as error:
        if not earlier or error.code not in ("batch_files_gone", "batch_not_found"):
            raise
        return client.batches.create(**wanted)


def wait(client: OpenAI, batch_id: str) -> Batch:
    """Poll until the batch has ended."""
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ENDED:
            return batch
        if counts := batch.request_counts:
            print(f"{batch.id} {batch.status}: {counts.completed} of {counts.total}", file=sys.stderr)
        time.sleep(POLL_SECONDS)


def batch_for(client: OpenAI, content: str, noted: dict[str, str]) -> Batch:
    """Return the batch of these lines: the one that was begun, or a new one that takes over what it can."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    earlier = noted.get("batch")
    if earlier:
        try:
            batch = wait(client, earlier)
        except APIStatusError as error:
            if error.status_code != 404:  # of another server, or long gone
                raise
            earlier = None
        else:
            counts = batch.request_counts
            if noted.get("digest") == digest and batch.status == "completed" and counts and not counts.failed:
                return batch
    batch = submit(client, content, earlier)
    noted |= {"batch": batch.id, "digest": digest}
    return batch


def results(client: OpenAI, batch: Batch) -> Iterator[tuple[str, str, str]]:
    """Yield custom_id, answer and error of each line that has one."""
    for file_id in (batch.output_file_id, batch.error_file_id):
        if not file_id:
            continue
        with client.files.with_streaming_response.content(file_id) as answer:
            for text in answer.iter_lines():
                line = json.loads(text)
                response, error = line["response"], line["error"]
                if response and response["status_code"] == 200:
                    yield line["custom_id"], response["body"]["choices"][0]["message"]["content"] or "", ""
                else:
                    yield line["custom_id"], "", (error or response["body"]["error"])["message"]


def main() -> int:
    """Run it, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--prompt", required=True, help="with {column} for each value of the row")
    parser.add_argument("--system", default="")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--column", default="answer", help="where answers go; errors go into NAME_error")
    options = parser.parse_args()

    columns, rows = read(options.source)
    try:
        lines = list(requests(rows, options))
    except KeyError as missing:
        parser.error(f"{options.source} has no column {missing}; it has {', '.join(columns)}")
    if not lines:
        parser.error(f"{options.source} has no rows")

    state = options.target.with_name(options.target.name + ".state")
    noted: list[dict[str, str]] = json.loads(state.read_text()) if state.exists() else []
    parts = ["".join(lines[start : start + MOST_ROWS]) for start in range(0, len(lines), MOST_ROWS)]
    noted += [{} for _ in parts[len(noted) :]]
    client = OpenAI()
    batches = []
    for part, note in zip(parts, noted, strict=False):
        batches.append(batch_for(client, part, note))
        state.write_text(json.dumps(noted))

    found: dict[str, tuple[str, str]] = {}
    for batch in batches:
        ended = wait(client, batch.id)
        for problem in (ended.errors and ended.errors.data) or []:
            print(f"line {problem.line}: {problem.message}", file=sys.stderr)
        found |= {custom_id: (answer, error) for custom_id, answer, error in results(client, ended)}

    with options.target.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*columns, options.column, f"{options.column}_error"])
        for number, row in enumerate(rows, start=1):
            answer, error = found.get(f"row-{number}", ("", "It was not run."))
            writer.writerow([*(row[name] for name in columns), answer, error])
    failed = sum(1 for number in range(1, len(rows) + 1) if found.get(f"row-{number}", ("", "x"))[1])
    print(f"{len(rows) - failed} of {len(rows)} rows answered: {options.target}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
