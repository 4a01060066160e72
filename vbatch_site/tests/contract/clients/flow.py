"""Drive a server with the official Python SDK, unmodified, and print what it saw as JSON.

    python flow.py BASE_URL API_KEY MODEL FOLDER

Run by the contract's tests with the newest 3.x and the newest 2.x; the checks are theirs.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai

BASE_URL, KEY, MODEL, FOLDER = sys.argv[1:5]
WINDOW: Any = "24h"
client = openai.OpenAI(base_url=BASE_URL, api_key=KEY)
sent: list[str] = []


def count_requests(of: openai.OpenAI) -> None:
    """Note each request that leaves, retries included."""
    inner: Any = of._client
    send = inner.send

    def counted(request: Any, **options: Any) -> Any:
        sent.append(f"{request.method} {request.url.path}")
        return send(request, **options)

    inner.send = counted


class Pipe(io.RawIOBase):
    """A stream that can't be rewound or measured, so that it is sent chunked."""

    def __init__(self, content: bytes) -> None:
        self._inner = io.BytesIO(content)
        self.name = "piped.jsonl"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(min(len(buffer), 10_000))
        buffer[: len(data)] = data
        return len(data)


def line(custom_id: str, text: str) -> str:
    """Return one input line."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 8}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"


def failure(call: Callable[[], Any]) -> dict[str, Any]:
    """Return what a call raises, as the SDK shows it."""
    before = len(sent)
    try:
        call()
    except openai.APIStatusError as error:
        return {
            "class": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "param": error.param,
            "type": error.type,
            "message": error.message,
            "request_id": error.request_id,
            "requests": len(sent) - before,
        }
    return {}


def wait(batch_id: str) -> Any:
    """Poll as users do."""
    deadline = time.monotonic() + 60
    while True:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "expired", "cancelled") or time.monotonic() > deadline:
            return batch
        time.sleep(0.1)


def files(report: dict[str, Any]) -> None:
    """Upload in every way, list, read and delete."""
    content = line("1", "hello") * 3
    path = Path(FOLDER, "my \u5165\u529b.jsonl")
    path.write_text(content)
    with path.open("rb") as stream:
        opened = client.files.create(file=stream, purpose="batch")
    report["file"] = opened.to_dict()
    report["file_request_id"] = opened._request_id
    report["from_bytes"] = client.files.create(file=content.encode(), purpose="batch").to_dict()
    piped: Any = Pipe(content.encode() * 2000)
    report["streamed"] = client.files.create(file=("piped.jsonl", piped), purpose="batch").to_dict()
    report["streamed_size"] = len(content.encode()) * 2000
    expiring = client.files.create(
        file=path, purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    report["expiring"] = expiring.to_dict()
    before = len(sent)
    report["waited"] = client.files.wait_for_processing(opened.id).to_dict()
    report["waited_requests"] = len(sent) - before
    answer = client.files.content(opened.id)
    report["text_is_same"] = answer.text == content
    report["lines"] = list(client.files.content(opened.id).iter_lines()) == content.splitlines()
    with client.files.with_streaming_response.content(report["streamed"]["id"]) as response:
        report["streamed_back"] = sum(len(block) for block in response.iter_bytes(1 << 16))
    raw = client.files.with_raw_response.retrieve(opened.id)
    report["raw_request_id"] = raw.headers["x-request-id"]
    made = [client.files.create(file=path, purpose="vision").id for _ in range(3)]
    report["made"] = made
    report["paged"] = [file.id for file in client.files.list(purpose="vision", limit=1)]
    deleted = client.files.delete(opened.id)
    report["deleted"] = deleted.to_dict()
    report["deleted_request_id"] = deleted._request_id
    report["missing"] = failure(lambda: client.files.retrieve(opened.id))
    report["private"] = failure(lambda: client.files.content(expiring.id))
    report["not_jsonl"] = failure(lambda: client.files.create(file=b"", purpose="batch"))
    report["purpose"] = failure(lambda: client.files.create(file=b"{}", purpose="nonsense"))  # type: ignore[arg-type]


def batches(report: dict[str, Any]) -> None:
    """Create, wait, read, cancel and list."""
    source = client.files.create(file=(line("good", "hello") + line("bad", "[[sim:400]]")).encode(), purpose="batch")
    batch = client.batches.create(
        input_file_id=source.id,
        endpoint="/v1/chat/completions",
        completion_window=WINDOW,
        metadata={"team": "\u7814\u7a76"},
    )
    report["created"] = batch.to_dict()
    done = wait(batch.id)
    report["done"] = done.to_dict()
    report["output"] = [json.loads(text) for text in client.files.content(done.output_file_id).text.splitlines()]
    report["errors"] = [json.loads(text) for text in client.files.content(done.error_file_id).text.splitlines()]
    report["late_cancel"] = failure(lambda: client.batches.cancel(batch.id))
    stuck = client.files.create(file=line("stuck", "[[sim:hang]]").encode(), purpose="batch")
    other = client.batches.create(
        input_file_id=stuck.id, endpoint="/v1/chat/completions", completion_window=WINDOW, metadata=None
    )
    report["null_metadata"] = other.metadata
    report["cancelling"] = client.batches.cancel(other.id).to_dict()
    report["cancelled"] = wait(other.id).to_dict()
    report["cancel_again"] = client.batches.cancel(other.id).to_dict()
    report["listed"] = [item.id for item in client.batches.list(limit=1)][:2]
    report["listed_by_default"] = [item.id for item in client.batches.list().data][:2]
    report["unknown_batch"] = failure(lambda: client.batches.retrieve("batch_" + "0" * 32))


def rest(report: dict[str, Any]) -> None:
    """Look at the models, and be refused without a good key."""
    report["models"] = [model.id for model in client.models.list()]
    report["model"] = client.models.retrieve(MODEL).to_dict()
    report["unknown_model"] = failure(lambda: client.models.retrieve("no/such model"))
    wrong = openai.OpenAI(base_url=BASE_URL, api_key="sk-wrong", organization="org-x", project="proj_x")
    count_requests(wrong)
    report["wrong_key"] = failure(lambda: wrong.models.list())


def main() -> None:
    """Print the report."""
    report: dict[str, Any] = {"version": openai.__version__}
    count_requests(client)
    files(report)
    batches(report)
    rest(report)
    sys.stdout.write(json.dumps(report))


main()
