"""Browsers of people in their roles, and the files and batches in every state that they look at."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from batches.finalize import finalize
from batches.leases import claim, commit
from batches.models import Batch
from batches.outcome import Outcome
from batches.states import BatchStatus
from batches.validate import validate
from files import uploads
from files.models import File
from vbatch_site.models import ApiKey, Project
from vbatch_site.tests.servers import MODEL, chat_line

SECRET = "the secret prompt"


def client_as(role: str) -> Client:
    """Return a browser that is signed in as a member of a role."""
    user, _ = get_user_model().objects.get_or_create(username=f"a {role}", is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    client = Client()
    client.force_login(user)
    return client


def stored(text: str, name: str = "input.jsonl") -> File:
    """Return an uploaded batch file."""
    upload = SimpleUploadedFile(name, text.encode())
    return uploads.create_file(Project.default(), upload, "batch", None)


def asked(text: str, **fields: Any) -> Batch:
    """Return a batch over a new file, not validated yet."""
    return Batch.begin(
        window=timedelta(hours=24),
        project=Project.default(),
        endpoint="/v1/chat/completions",
        input_file_id=stored(text).pk,
        completion_window="24h",
        **fields,
    )


def begun(lines: int = 5, **fields: Any) -> Batch:
    """Return a batch that was validated, of as many good lines."""
    batch = asked("".join(chat_line(f"line-{i}", f"{SECRET} {i}") for i in range(1, lines + 1)), **fields)
    validate(batch.pk)
    batch.refresh_from_db()
    assert batch.status == BatchStatus.IN_PROGRESS, batch.errors
    return batch


def answer(text: str) -> bytes:
    """Return what an engine answers."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()


def outcomes(batch: Batch, numbers: Iterator[int] | range, failing: int = 0) -> list[Outcome]:
    """Return answers of a batch's lines, every so many of them a failure."""
    found = []
    for number in numbers:
        fields: dict[str, Any] = {"status_code": 200, "body": answer(f"answer {number}"), "milliseconds": 7}
        if failing and number % failing == 0:
            fields = {"error_code": "engine_crashed", "error_message": "It died."}
        found.append(Outcome(batch.pk, number, f"line-{number}", **fields, input_tokens=3, output_tokens=2))
    return found


def run(batch: Batch, lines: int, failing: int = 0) -> None:
    """Commit the results of the first lines."""
    done = 0
    while done < lines and (lease := claim(batch.pk, MODEL, "worker-1")):
        numbers = sorted(line.number for line in lease.lines)[: lines - done]
        commit([(lease, outcome) for outcome in outcomes(batch, iter(numbers), failing)])
        done += len(numbers)
    batch.refresh_from_db()


def ended(lines: int = 5, failing: int = 0) -> Batch:
    """Return a batch whose files are written."""
    batch = begun(lines)
    run(batch, lines, failing)
    assert finalize(batch.pk)
    batch.refresh_from_db()
    assert batch.status == BatchStatus.COMPLETED
    return batch


def keyed(name: str = "nightly") -> tuple[ApiKey, Client]:
    """Return a new key, and a client that uses it."""
    key, text = ApiKey.issue(Project.default(), name)
    return key, Client(headers={"Authorization": f"Bearer {text}"})


def sent(api: Client, **fields: Any) -> Any:
    """Create a batch over the API; return the answer."""
    wanted = {
        "input_file_id": stored(chat_line("a")).pk,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    return api.post("/v1/batches", {**wanted, **fields}, content_type="application/json")
