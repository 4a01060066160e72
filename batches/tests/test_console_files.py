"""The console's pages of files, and the uploads that a browser makes."""

import asyncio
import json
from typing import Any

import pytest
from django.test import Client

from batches.tests.browsing import begun, client_as, ended, stored
from files.models import File
from vbatch_site.models import Project
from vbatch_site.tests.servers import chat_line

pytestmark = pytest.mark.django_db


def test_a_file_comes_in_parts_and_goes_on_after_a_break(operator: Client) -> None:
    text = "".join(chat_line(f"line-{i}") for i in range(40)).encode()
    begin = {"project": Project.default().pk, "filename": "big.jsonl", "bytes": len(text)}
    upload = operator.post("/console/uploads", json.dumps(begin), content_type="application/json").json()
    url = f"/console/uploads/{upload['id']}"
    half = len(text) // 2
    binary = "application/octet-stream"
    one = operator.post(f"{url}/parts", text[:half], content_type=binary).json()["id"]
    assert operator.get(url).json() == {"state": "pending", "parts": [one], "part_bytes": upload["part_bytes"]}
    two = operator.post(f"{url}/parts", text[half:], content_type=binary).json()["id"]
    done = operator.post(f"{url}/complete", json.dumps({"part_ids": [one, two]}), content_type="application/json")
    file = File.objects.get(pk=done.json()["file"])
    assert (file.bytes, file.filename, file.purpose) == (len(text), "big.jsonl", "batch")
    assert done.json()["next"] == f"/console/batches/new/{file.pk}"
    late = operator.post(f"{url}/parts", b"x", content_type=binary)
    assert late.status_code == 400
    assert "takes no more parts" in late.json()["error"]["message"]


def test_an_upload_is_refused_in_the_words_of_the_api(operator: Client) -> None:
    begin = {"project": Project.default().pk, "filename": "x", "bytes": 201 << 20}
    refused = operator.post("/console/uploads", json.dumps(begin), content_type="application/json")
    assert refused.json()["error"]["message"] == "File is too large."
    assert client_as("viewer").post("/console/uploads", "{}", content_type="application/json").status_code == 403


def test_a_file_that_a_running_batch_reads_is_not_deleted(operator: Client) -> None:
    batch = begun()
    url = f"/console/files/{batch.input_file_id}"
    assert "1 running batches read it" in operator.get(url).content.decode()
    operator.post(f"{url}/delete")
    assert File.objects.get(pk=batch.input_file_id).deleted_at is None
    other = stored(chat_line("b"))
    operator.post(f"/console/files/{other.pk}/delete")
    assert operator.get(f"/console/files/{other.pk}").status_code == 404


async def _collected(sent: Any) -> bytes:
    return b"".join([block async for block in sent.streaming_content])


def test_a_download_is_what_was_stored(operator: Client) -> None:
    file = stored(chat_line("a"))
    sent = operator.get(f"/console/files/{file.pk}/download")
    assert asyncio.run(_collected(sent)).decode() == chat_line("a")


def test_a_file_opens_at_any_line(operator: Client) -> None:
    file = stored("".join(chat_line(f"line-{i}", f"text {i}") for i in range(1, 40)))
    assert "text 17" in operator.get(f"/console/files/{file.pk}?line=17").content.decode()
    assert "no such line" in operator.get(f"/console/files/{file.pk}?line=70").content.decode()


def test_files_say_how_long_they_are_and_who_reads_them(operator: Client) -> None:
    batch = ended(7, failing=7)
    other = stored("".join(chat_line(f"l-{i}") for i in range(3)).rstrip("\n"), "quarterly_report.jsonl")
    lines = dict(File.objects.values_list("pk", "lines"))
    assert [lines[str(pk)] for pk in (batch.input_file_id, batch.output_file_id, batch.error_file_id)] == [7, 6, 1]
    assert lines[other.pk] is None
    assert "<dt>Lines</dt><dd>3</dd>" in operator.get(f"/console/files/{other.pk}").content.decode()
    for query, shown in {
        "used=yes": {batch.input_file_id},
        "used=no": {other.pk, batch.output_file_id, batch.error_file_id},
        "q=report": {other.pk},
        "q=uarter": set(),
        "purpose=batch": {other.pk, batch.input_file_id},
    }.items():
        text = operator.get(f"/console/files?{query}").content.decode()
        assert {pk for pk in lines if f"/console/files/{pk}" in text} == shown, query
