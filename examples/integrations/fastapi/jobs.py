"""A job is a file that somebody uploaded here, and the batch that the server makes of it."""

import json
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any, BinaryIO
from uuid import uuid4

from openai import APIStatusError, OpenAI
from openai.types import Batch
from store import ENDED, Store

logger = logging.getLogger("jobs")

GROUP = 500  # results written at a time: the database is not held while the server is read

NONE = {"total": 0, "completed": 0, "failed": 0}

Result = tuple[str, int | None, str | None, str | None]


class Jobs:
    """Submits files and takes results over. Its calls block: run them in threads."""

    def __init__(self, client: OpenAI, store: Store, webhook: dict[str, Any] | None) -> None:
        self._client = client
        self._store = store
        self._webhook = webhook

    def submit(self, filename: str, content: BinaryIO) -> str:
        """Upload a file and create its batch; return the job's id.

        Raises openai.APIError, and ValueError when the first line is no JSON.
        """
        key = uuid4().hex
        self._store.add(key, filename)
        try:
            endpoint = _endpoint(content)
            file = self._client.files.create(file=(filename, content), purpose="batch")
            batch = self._client.batches.create(
                input_file_id=file.id,
                endpoint=endpoint,
                completion_window="24h",
                metadata={"filename": filename[:512]},
                # The SDK sends a request again when the answer is lost; the key makes that one batch.
                extra_headers={"Idempotency-Key": key},
                extra_body={"webhook": self._webhook} if self._webhook else None,
            )
        except Exception:
            self._store.forget(key)
            raise
        self._store.submitted(key, batch.id)
        logger.info("submitted %s as %s", file.id, batch.id)
        return batch.id

    def refresh(self, job: str) -> None:
        """Look at a job's batch, and take its results over once it has ended. Raises openai.APIError."""
        try:
            batch = self._client.batches.retrieve(job)
        except APIStatusError as error:
            if error.status_code != 404:
                raise
            self._store.seen(job, "failed", NONE, "The server has no such batch.")
            self._store.has_results(job)
            return
        seen = batch.request_counts
        counts = {"total": seen.total, "completed": seen.completed, "failed": seen.failed} if seen else NONE
        self._store.seen(job, batch.status, counts, _why(batch))
        if batch.status in ENDED:
            results = self._results(batch)
            while group := list(islice(results, GROUP)):
                self._store.add_results(job, group)
            self._store.has_results(job)
            logger.info("%s is %s: %s", job, batch.status, counts)

    def cancel(self, job: str) -> None:
        """Ask the server to cancel a job's batch. Raises openai.APIError."""
        self._client.batches.cancel(job)

    def _results(self, batch: Batch) -> Iterator[Result]:
        """Yield custom_id, status, answer and error of each line, streamed from the server."""
        for file_id in (batch.output_file_id, batch.error_file_id):
            if not file_id:
                continue
            with self._client.files.with_streaming_response.content(file_id) as answer:
                for text in answer.iter_lines():
                    line = json.loads(text)
                    response, error = line["response"], line["error"]
                    status = response["status_code"] if response else None
                    if status == 200:
                        yield line["custom_id"], status, json.dumps(response["body"]), None
                    else:
                        refused = error or response["body"]["error"]
                        yield str(line["custom_id"]), status, None, refused["message"]


def _endpoint(content: BinaryIO) -> Any:
    """Return the endpoint that a file's first line names; a first line without one is for the server to refuse."""
    line = json.loads(content.readline() or b"{}")
    content.seek(0)
    return line.get("url", "/v1/chat/completions") if isinstance(line, dict) else "/v1/chat/completions"


def _why(batch: Batch) -> str | None:
    """Return why a file did not validate: its first faults, with their lines."""
    faults = (batch.errors and batch.errors.data) or []
    return "; ".join(f"line {fault.line}: {fault.message}" for fault in faults[:5]) or None
