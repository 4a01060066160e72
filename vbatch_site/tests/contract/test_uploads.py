"""Items 92 to 96: files that arrive in parts."""

import hashlib
import io
import os
import random
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import pytest

from vbatch_site.tests.contract.forms import assert_nothing_left, uploaded_files
from vbatch_site.tests.servers import Server, Web, chat_line, wait_until

PART_BYTES = 67_108_864  # the SDK's DEFAULT_PART_SIZE

Answer = tuple[int, dict[str, str], Any]


@pytest.fixture
def client(sim_server: Server) -> openai.OpenAI:
    """Return the unmodified SDK, pointed at the server."""
    return openai.OpenAI(base_url=sim_server.base_url, api_key=sim_server.key)


def begin(server: Server, size: int, **fields: Any) -> Answer:
    """Begin an upload."""
    wanted = {"bytes": size, "filename": "a b.txt", "mime_type": "text/plain", "purpose": "fine-tune", **fields}
    return server.request("POST", "/v1/uploads", wanted)


def begun(server: Server, size: int, **fields: Any) -> str:
    """Begin an upload and return its id."""
    status, _, upload = begin(server, size, **fields)
    assert status == 200, upload
    return str(upload["id"])


def form(data: bytes, filename: str | None = "upload", name: str = "data") -> tuple[bytes, dict[str, str]]:
    """Return a form of one field, as a file part or as a plain field, and its content type."""
    edge = uuid4().hex
    suffix = "" if filename is None else f'; filename="{filename}"\r\nContent-Type: application/octet-stream'
    head = f'--{edge}\r\nContent-Disposition: form-data; name="{name}"{suffix}\r\n\r\n'
    body = b"".join([head.encode(), data, f"\r\n--{edge}--\r\n".encode()])
    return body, {"Content-Type": f"multipart/form-data; boundary={edge}"}


def send_part(server: Server, upload_id: str, data: bytes, filename: str | None = "upload") -> Answer:
    """Send one part."""
    body, kind = form(data, filename)
    return server.request("POST", f"/v1/uploads/{upload_id}/parts", body, headers=kind)


def part(server: Server, upload_id: str, data: bytes) -> str:
    """Send one part and return its id."""
    status, _, answer = send_part(server, upload_id, data)
    assert status == 200, answer
    return str(answer["id"])


def complete(server: Server, upload_id: str, part_ids: list[str], **fields: Any) -> Answer:
    """Complete an upload."""
    return server.request("POST", f"/v1/uploads/{upload_id}/complete", {"part_ids": part_ids, **fields})


def content(server: Server, file_id: str) -> bytes:
    """Return a file's bytes."""
    return bytes(server.request("GET", f"/v1/files/{file_id}/content")[2])


def stored_parts(server: Server, upload_id: str) -> int:
    """Return how many parts of an upload still have bytes."""
    found = server.query("SELECT path FROM files_uploadpart WHERE upload_id = %s", upload_id)
    return sum((server.home / "files" / path).exists() for (path,) in found)


def bytes_of_parts(server: Server) -> set[str]:
    """Return the names of all parts that have bytes."""
    return {path.name for path in (server.home / "files" / "parts").rglob("part_*")}


def let_expire(server: Server, upload_id: str) -> None:
    """Put an upload's hour into the past."""
    moved = "UPDATE files_upload SET expires_at = expires_at - interval '1 hour' WHERE id = %s RETURNING id"
    assert server.query(moved, upload_id)


def test_item_092_a_chunked_upload_of_six_bytes_in_parts_of_three_gives_a_file_of_six_bytes(
    client: openai.OpenAI,
) -> None:
    upload = client.uploads.upload_file_chunked(
        file=b"abcdef", filename="six.txt", bytes=6, mime_type="text/plain", purpose="fine-tune", part_size=3
    )
    assert upload.status == "completed"
    assert upload.object == "upload"
    assert upload.file is not None
    assert (upload.file.bytes, upload.file.filename, upload.file.purpose) == (6, "six.txt", "fine-tune")
    assert client.files.content(upload.file.id).content == b"abcdef"


def test_item_092_a_chunked_upload_from_a_path_can_be_run_as_a_batch(
    client: openai.OpenAI, sim_server: Server, tmp_path: Path
) -> None:
    source = tmp_path / "lines.jsonl"
    source.write_text("".join(chat_line(f"r{number}") for number in range(20)))
    upload = client.uploads.upload_file_chunked(
        file=source, mime_type="application/jsonl", purpose="batch", part_size=700
    )
    assert upload.file is not None
    assert upload.file.expires_at == upload.file.created_at + 2_592_000
    batch = client.batches.create(
        input_file_id=upload.file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    assert sim_server.wait(batch.id)["request_counts"] == {"total": 20, "completed": 20, "failed": 0}


def test_item_092_a_new_upload_has_all_keys_and_an_hour(sim_server: Server) -> None:
    status, _, upload = begin(sim_server, 3)
    assert status == 200
    assert upload["id"].startswith("upload_")
    assert upload == {
        "id": upload["id"],
        "object": "upload",
        "bytes": 3,
        "created_at": upload["created_at"],
        "expires_at": upload["created_at"] + 3600,
        "filename": "a b.txt",
        "purpose": "fine-tune",
        "status": "pending",
        "file": None,
    }
    _, _, answer = send_part(sim_server, upload["id"], b"abc")
    created_at = answer["created_at"]
    assert answer == {
        "id": answer["id"], "object": "upload.part", "created_at": created_at, "upload_id": upload["id"]
    }  # fmt: skip


def test_item_093_parts_are_joined_in_the_order_they_are_named(sim_server: Server) -> None:
    upload_id = begun(sim_server, 9)
    ids = {data: part(sim_server, upload_id, data) for data in (b"ghi", b"abc", b"def")}
    status, _, upload = complete(sim_server, upload_id, [ids[b"abc"], ids[b"def"], ids[b"ghi"]])
    assert status == 200
    assert content(sim_server, upload["file"]["id"]) == b"abcdefghi"


def test_item_093_parts_sent_at_the_same_time_keep_their_bytes(sim_server: Server) -> None:
    chunks = [random.randbytes(300_000) for _ in range(12)]
    upload_id = begun(sim_server, sum(map(len, chunks)))
    with ThreadPoolExecutor(6) as pool:
        ids = list(pool.map(lambda chunk: part(sim_server, upload_id, chunk), chunks))
    md5 = hashlib.md5(b"".join(chunks), usedforsecurity=False).hexdigest()
    status, _, upload = complete(sim_server, upload_id, ids, md5=md5.upper())
    assert status == 200, upload
    assert content(sim_server, upload["file"]["id"]) == b"".join(chunks)
    assert stored_parts(sim_server, upload_id) == 0


def test_item_093_a_part_that_is_not_named_is_left_out_and_removed(sim_server: Server) -> None:
    upload_id = begun(sim_server, 3)
    unused, used = part(sim_server, upload_id, b"xyz"), part(sim_server, upload_id, b"abc")
    _, _, upload = complete(sim_server, upload_id, [used])
    assert content(sim_server, upload["file"]["id"]) == b"abc"
    assert not {unused, used} & bytes_of_parts(sim_server)


@pytest.mark.parametrize(
    ("size", "fields", "param"),
    [(5, {}, "part_ids"), (7, {}, "part_ids"), (6, {"md5": "0" * 32}, "md5"), (6, {"md5": "not hex"}, "md5")],
)
def test_item_094_a_wrong_total_or_md5_is_400_and_leaves_no_file(
    sim_server: Server, size: int, fields: dict[str, str], param: str
) -> None:
    before = uploaded_files(sim_server)
    upload_id = begun(sim_server, size)
    ids = [part(sim_server, upload_id, b"abc"), part(sim_server, upload_id, b"def")]
    status, _, answer = complete(sim_server, upload_id, ids, **fields)
    assert status == 400
    assert answer["error"]["param"] == param
    assert uploaded_files(sim_server) == before
    # The upload is as it was: what was missing can still be sent.
    if size == 7:
        assert complete(sim_server, upload_id, [*ids, part(sim_server, upload_id, b"g")])[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 400, "part_ids"),
        ({"part_ids": "part_1"}, 400, "part_ids"),
        ({"part_ids": [1]}, 400, "part_ids[0]"),
        ({"part_ids": ["part_1", "part_1"]}, 400, "part_ids"),
        ({"part_ids": ["part_1"]}, 404, "part_ids"),
        ({"part_ids": ["\0"]}, 404, "part_ids"),
        ({"part_ids": [], "md5": 1}, 400, "md5"),
    ],
)
def test_item_094_a_completion_that_makes_no_sense_is_refused(
    sim_server: Server, body: dict[str, Any], status: int, param: str
) -> None:
    got, _, answer = sim_server.request("POST", f"/v1/uploads/{begun(sim_server, 0)}/complete", body)
    assert (got, answer["error"]["param"]) == (status, param)


@pytest.mark.parametrize("filename", ["upload", None], ids=["file part", "plain field"])
def test_item_095_a_part_of_64_mib_is_accepted_in_both_spellings(sim_server: Server, filename: str | None) -> None:
    data = random.randbytes(1 << 20) * 64
    assert len(data) == PART_BYTES
    upload_id = begun(sim_server, PART_BYTES)
    status, _, answer = send_part(sim_server, upload_id, data, filename)
    assert status == 200, answer
    status, _, upload = complete(sim_server, upload_id, [answer["id"]])
    assert status == 200, upload
    got = content(sim_server, upload["file"]["id"])
    assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


def test_item_095_a_part_of_one_byte_more_is_refused_and_kept_nowhere(sim_server: Server) -> None:
    upload_id = begun(sim_server, PART_BYTES)
    status, _, answer = send_part(sim_server, upload_id, bytes(PART_BYTES + 1))
    assert status == 400
    assert "too large" in answer["error"]["message"]
    assert sim_server.query("SELECT id FROM files_uploadpart WHERE upload_id = %s", upload_id) == []
    assert_nothing_left(sim_server)


def test_item_095_a_plain_field_keeps_bytes_that_are_no_text(sim_server: Server) -> None:
    data = bytes(range(256)) * 4
    upload_id = begun(sim_server, len(data))
    _, _, answer = send_part(sim_server, upload_id, data, filename=None)
    _, _, upload = complete(sim_server, upload_id, [answer["id"]])
    assert content(sim_server, upload["file"]["id"]) == data


@pytest.mark.parametrize("end", ["completed", "cancelled", "expired"])
def test_item_096_a_part_after_the_end_is_refused_and_no_bytes_of_parts_stay(sim_server: Server, end: str) -> None:
    upload_id = begun(sim_server, 3)
    part_id = part(sim_server, upload_id, b"abc")
    if end == "completed":
        assert complete(sim_server, upload_id, [part_id])[2]["status"] == end
    elif end == "cancelled":
        assert sim_server.request("POST", f"/v1/uploads/{upload_id}/cancel")[2]["status"] == end
    else:
        let_expire(sim_server, upload_id)
    status, _, answer = send_part(sim_server, upload_id, b"abc")
    assert status == 400
    assert end in answer["error"]["message"]
    assert sim_server.query("SELECT state FROM files_upload WHERE id = %s", upload_id) == [(end,)]
    assert part_id not in bytes_of_parts(sim_server)
    if end != "completed":
        assert complete(sim_server, upload_id, [part_id])[0] == 400
    if end != "cancelled":
        assert sim_server.request("POST", f"/v1/uploads/{upload_id}/cancel")[0] == 400


def test_item_096_cancel_and_complete_answer_a_second_time_as_the_first(sim_server: Server) -> None:
    upload_id = begun(sim_server, 3)
    for _ in range(2):
        status, _, upload = sim_server.request("POST", f"/v1/uploads/{upload_id}/cancel")
        assert (status, upload["status"], upload["file"]) == (200, "cancelled", None)
    upload_id = begun(sim_server, 6)
    ids = [part(sim_server, upload_id, data) for data in (b"abc", b"def")]
    first = complete(sim_server, upload_id, ids)[2]
    assert complete(sim_server, upload_id, ids)[2] == first
    assert complete(sim_server, upload_id, ids[::-1])[0] == 400


def test_item_096_completions_at_the_same_time_make_one_file(sim_server: Server) -> None:
    chunk = random.randbytes(4 << 20)
    upload_id = begun(sim_server, 5 * len(chunk))
    ids = [part(sim_server, upload_id, chunk) for _ in range(5)]
    before = uploaded_files(sim_server)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: complete(sim_server, upload_id, ids), range(6)))
    assert {status for status, _, _ in answers} == {200}
    assert len({upload["file"]["id"] for _, _, upload in answers}) == 1
    assert uploaded_files(sim_server) == before + 1
    assert content(sim_server, answers[0][2]["file"]["id"]) == 5 * chunk


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bytes": None}, "bytes"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": 1.5}, "bytes"),
        ({"bytes": (8 << 30) + 1}, "bytes"),
        ({"bytes": 10**30}, "bytes"),
        ({"filename": None}, "filename"),
        ({"filename": "a\0"}, "filename"),
        ({"mime_type": None}, "mime_type"),
        ({"mime_type": 1}, "mime_type"),
        ({"purpose": None}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "batch", "bytes": (200 << 20) + 1}, None),
        ({"expires_after": {"anchor": "created_at"}}, "expires_after.seconds"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3599}}, "expires_after.seconds"),
    ],
)
def test_a_request_for_an_upload_is_checked(sim_server: Server, fields: dict[str, Any], param: str | None) -> None:
    status, _, answer = begin(sim_server, 3, **fields)
    assert (status, answer["error"]["param"]) == (400, param)


def test_expires_after_counts_from_the_creation_of_the_file(sim_server: Server) -> None:
    upload_id = begun(sim_server, 3, expires_after={"anchor": "created_at", "seconds": 7200})
    file = complete(sim_server, upload_id, [part(sim_server, upload_id, b"abc")])[2]["file"]
    assert file["expires_at"] == file["created_at"] + 7200


@pytest.mark.parametrize("data", [b"no json\n", b'{\n"pretty": 1}\n'])
def test_the_joined_parts_of_a_batch_file_are_checked_as_a_file_would_be(sim_server: Server, data: bytes) -> None:
    upload_id = begun(sim_server, len(data), purpose="batch")
    status, _, answer = complete(sim_server, upload_id, [part(sim_server, upload_id, data)])
    assert status == 400
    assert answer["error"]["message"] == "Invalid file format for Batch API. Must be .jsonl"


def test_a_first_line_may_go_over_parts(sim_server: Server) -> None:
    line = chat_line("r1").encode()
    upload_id = begun(sim_server, len(line), purpose="batch")
    ids = [part(sim_server, upload_id, line[at : at + 40]) for at in range(0, len(line), 40)]
    assert complete(sim_server, upload_id, ids)[0] == 200


def test_an_upload_of_another_project_is_not_found(sim_server: Server) -> None:
    upload_id = begun(sim_server, 3)
    other = sim_server.new_key("uploads-elsewhere")
    body, kind = form(b"abc")
    for end, sent, headers in (("parts", body, kind), ("complete", {"part_ids": []}, None), ("cancel", None, None)):
        path = f"/v1/uploads/{upload_id}/{end}"
        status, _, answer = sim_server.request("POST", path, sent, key=other, headers=headers)
        assert (status, answer["error"]["message"]) == (404, f"No such Upload object: {upload_id}")


def test_a_part_that_breaks_off_is_refused(sim_server: Server) -> None:
    upload_id = begun(sim_server, 3)
    body, kind = form(b"abc")
    for wrong in (body[:-8], body[:40], b"", b"--", form(b"abc", name="file")[0]):
        status, _, answer = sim_server.request("POST", f"/v1/uploads/{upload_id}/parts", wrong, headers=kind)
        assert status == 400, answer
    status, _, _ = sim_server.request("POST", f"/v1/uploads/{upload_id}/parts", {"data": "abc"})
    assert status == 415
    assert sim_server.query("SELECT id FROM files_uploadpart WHERE upload_id = %s", upload_id) == []


def test_a_large_file_goes_up_in_parts_of_the_sdks_own_size(client: openai.OpenAI, sim_server: Server) -> None:
    data = random.randbytes(1 << 20) * 130
    upload = client.uploads.upload_file_chunked(
        file=io.BytesIO(data).getvalue(),
        filename="large.bin",
        bytes=len(data),
        mime_type="application/octet-stream",
        purpose="fine-tune",
        md5=hashlib.md5(data, usedforsecurity=False).hexdigest(),
    )
    assert upload.file is not None
    assert upload.file.bytes == len(data)
    assert hashlib.sha256(content(sim_server, upload.file.id)).digest() == hashlib.sha256(data).digest()


def test_a_server_killed_while_it_takes_and_joins_parts_goes_on_and_keeps_no_stray_bytes(new_home: Path) -> None:
    chunk = random.randbytes(24 << 20)
    with Web(new_home) as server, ThreadPoolExecutor(4) as pool:
        upload_id = begun(server, 6 * len(chunk))
        ids = [part(server, upload_id, chunk) for _ in range(6)]
        doomed: list[Future[Any]] = [pool.submit(part, server, upload_id, chunk) for _ in range(3)]
        doomed.append(pool.submit(complete, server, upload_id, ids))
        wait_until(lambda: list((new_home / "tmp").iterdir()), step=0.001)
        time.sleep(0.05)
        server.kill_tree()
        # On a fast disk one of them may have been answered before.
        for request in doomed:
            request.exception()
        server.start()
        status, _, upload = complete(server, upload_id, ids)
        assert status == 200, upload
        assert content(server, upload["file"]["id"]) == 6 * chunk
        # What never arrived is given up after a day.
        for statement in (
            "UPDATE files_file SET deleted_at = now() WHERE deleted_at IS NOT NULL RETURNING id",
            "UPDATE files_uploadpart SET created_at = created_at - interval '1 day' RETURNING id",
        ):
            server.query(statement)
        for path in (new_home / "tmp").iterdir():
            os.utime(path, (0, 0))
        server.manage("shell", "-c", "from batches.sweep import sweep; sweep()")
        left = {str(path.relative_to(new_home / "files")) for path in (new_home / "files").rglob("*") if path.is_file()}
        assert left == {
            path for (path,) in server.query("SELECT path FROM files_file WHERE id = %s", upload["file"]["id"])
        }
        assert not list((new_home / "tmp").iterdir())
