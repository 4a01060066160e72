"""Items 15 to 42: the Files API."""

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from vbatch_site.tests.contract.forms import (
    LINE,
    NOT_JSONL,
    assert_nothing_left,
    assert_refused,
    multipart,
    send_form,
    upload,
)
from vbatch_site.tests.servers import MODEL, Server, chat_line

FIELDS = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"}
UNKNOWN = "file-1111111111111111111111"
PURPOSES = ["fine-tune", "assistants", "batch", "user_data", "vision", "evals"]
MEGABYTE = 1 << 20


def _file(server: Server, content: bytes = LINE, **wanted: str) -> dict[str, Any]:
    status, _, file = upload(server, content, **wanted)
    assert status == 200, file
    return dict(file)


def _list(server: Server, query: str = "", key: str | None = "") -> dict[str, Any]:
    status, _, page = server.request("GET", f"/v1/files{query}", key=key)
    assert status == 200, page
    return dict(page)


def _walk(server: Server, query: str) -> Iterator[str]:
    """Yield ids page by page as SDKs do: the next cursor is the last id of `data`."""
    after = ""
    while True:
        page = _list(server, query + after)
        yield from (file["id"] for file in page["data"])
        if not page["has_more"]:
            return
        after = f"&after={page['data'][-1]['id']}"


def test_item_15_an_upload_answers_all_nine_fields_and_is_processed(sim_server: Server) -> None:
    file = _file(sim_server)
    assert set(file) == FIELDS
    assert (file["object"], file["status"], file["status_details"]) == ("file", "processed", None)
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(LINE), "input.jsonl", "batch")
    assert abs(file["created_at"] - time.time()) < 60
    assert sim_server.request("GET", f"/v1/files/{file['id']}")[2] == file


def test_item_16_a_file_id_is_file_and_22_base58_characters(sim_server: Server) -> None:
    assert re.fullmatch("file-[1-9A-HJ-NP-Za-km-z]{22}", _file(sim_server)["id"])


def test_item_17_a_batch_file_expires_after_30_days(sim_server: Server) -> None:
    file = _file(sim_server)
    assert file["expires_at"] == file["created_at"] + 2_592_000


@pytest.mark.parametrize("purpose", sorted(set(PURPOSES) - {"batch"}))
def test_item_18_a_file_of_another_purpose_does_not_expire(sim_server: Server, purpose: str) -> None:
    assert _file(sim_server, purpose=purpose)["expires_at"] is None


@pytest.mark.parametrize("seconds", [3600, 2_592_000])
def test_item_19_expires_after_comes_as_strings(sim_server: Server, seconds: int) -> None:
    file = _file(sim_server, anchor="created_at", seconds=str(seconds))
    assert file["expires_at"] == file["created_at"] + seconds


@pytest.mark.parametrize(
    ("seconds", "code"),
    [
        ("3599", "integer_below_min_value"),
        ("2592001", "integer_above_max_value"),
        ("9" * 19, "integer_above_max_value"),
        ("9" * 5000, "invalid_type"),
        ("3600.5", "invalid_type"),
        ("-1", "invalid_type"),
        ("soon", "invalid_type"),
    ],
)
def test_item_20_a_lifetime_out_of_bounds_is_400(sim_server: Server, seconds: str, code: str) -> None:
    answer = upload(sim_server, LINE, anchor="created_at", seconds=seconds)
    assert_refused(answer, 400, param="expires_after.seconds", code=code)
    assert_nothing_left(sim_server)


@pytest.mark.parametrize("field", [{"anchor": "created_at"}, {"seconds": "3600"}])
def test_item_21_half_a_lifetime_is_400(sim_server: Server, field: dict[str, str]) -> None:
    missing = "expires_after.seconds" if "anchor" in field else "expires_after.anchor"
    answer = upload(sim_server, LINE, **field)
    assert_refused(answer, 400, param=missing, code="missing_required_parameter")


def test_item_21_an_unknown_anchor_is_400(sim_server: Server) -> None:
    answer = upload(sim_server, LINE, anchor="last_active_at", seconds="3600")
    assert_refused(answer, 400, param="expires_after.anchor", code="invalid_value")


@pytest.mark.parametrize(
    "name", ["upload", "unknown_file", "my input file.jsonl", "\u5165\u529b\u30c7\u30fc\u30bf.jsonl", "3"]
)
def test_item_22_filenames_come_back_as_they_were_sent(sim_server: Server, name: str) -> None:
    file = _file(sim_server, filename=name)
    assert file["filename"] == name
    headers = sim_server.request("GET", f"/v1/files/{file['id']}/content")[1]
    assert headers["content-disposition"].startswith('attachment; filename="')


@pytest.mark.parametrize("content", [b"", b"\n", b"  \n\n \n"])
def test_item_23_an_empty_batch_file_is_400(sim_server: Server, content: bytes) -> None:
    answer = upload(sim_server, content)
    assert_refused(answer, 400, NOT_JSONL, param=None, code=None)
    assert answer[2]["detail"] == {"message": NOT_JSONL, "code": None}
    assert_nothing_left(sim_server)


@pytest.mark.parametrize("name", ["input.jsonl", "notes.txt", "upload"])
@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b'{\n  "custom_id": "1"\n}\n',
        b"[]\n",
        b"1\n",
        b"\x89PNG\r\n\x1a\n",
        b'{"a": 1} {"b": 2}\n',
        b"\xff\xfe{\0}\0\n\0",
        b"[" * 100_000,
        b'{"a":' + b"9" * 10_000 + b"}",
        b"\x1f\x8b\x08\0",
    ],
    ids=["words", "pretty", "array", "number", "png", "two", "utf-16", "deep", "huge integer", "gzip"],
)
def test_item_24_a_first_line_that_is_no_json_object_is_400_whatever_the_name(
    sim_server: Server, content: bytes, name: str
) -> None:
    assert_refused(upload(sim_server, content, filename=name), 400, NOT_JSONL)
    assert_nothing_left(sim_server)


def test_item_25_a_broken_second_line_is_taken(sim_server: Server) -> None:
    assert _file(sim_server, LINE + b"not json\n")["status"] == "processed"


@pytest.mark.parametrize("content", [LINE, LINE.strip(), LINE.replace(b"\n", b"\r\n"), b"\n\n" + LINE])
def test_item_26_jsonl_without_an_extension_is_taken(sim_server: Server, content: bytes) -> None:
    assert _file(sim_server, content, filename="upload")["bytes"] == len(content)


def test_item_27_an_unknown_purpose_is_400_and_lists_the_known(sim_server: Server) -> None:
    message = f"'homework' is not one of {PURPOSES} - 'purpose'"
    assert_refused(upload(sim_server, LINE, "homework"), 400, message, param="purpose", code=None)
    assert_nothing_left(sim_server)


@pytest.mark.parametrize(
    ("left_out", "message"), [(0, "'purpose' is a required property"), (1, "'file' is a required property")]
)
def test_items_27_and_28_a_missing_field_is_400(sim_server: Server, left_out: int, message: str) -> None:
    parts = [("purpose", None, "batch"), ("file", "input.jsonl", LINE)]
    del parts[left_out]
    assert_refused(send_form(sim_server, multipart(parts)), 400, message, param=None, code=None)  # type: ignore[arg-type]


def _large(purpose: str, size: int) -> Iterator[bytes]:
    head, tail = multipart([("purpose", None, purpose), ("file", "input.jsonl", b"{}\n@")]).split(b"@")
    yield head
    for start in range(0, size - 3, MEGABYTE):
        yield b" " * min(MEGABYTE, size - 3 - start)
    yield tail


@pytest.mark.parametrize(
    ("purpose", "size", "taken"),
    [
        ("batch", 200 * MEGABYTE, True),
        ("batch", 200 * MEGABYTE + 1, False),
        ("user_data", 200 * MEGABYTE + 1, True),
        ("user_data", 512 * MEGABYTE + 1, False),
        ("user_data", 520 * MEGABYTE, False),
    ],
)
def test_item_28_a_file_above_its_limit_is_400_and_no_process_grows(
    sim_server: Server, purpose: str, size: int, taken: bool
) -> None:
    web = sim_server.web()
    before, peak, done = web.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, web.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    written = web.io_counters().write_chars
    try:
        answer = send_form(sim_server, _large(purpose, size))
    finally:
        done.set()
        watcher.join()
    assert peak - before < 64 * MEGABYTE
    assert web.io_counters().write_chars - written < 2 * size + 16 * MEGABYTE
    if taken:
        assert (answer[0], answer[2]["bytes"]) == (200, size)
        assert sim_server.request("DELETE", f"/v1/files/{answer[2]['id']}")[0] == 200
    else:
        assert_refused(answer, 400, "File is too large.", param=None, code=None)
        assert_nothing_left(sim_server)


@pytest.mark.parametrize("purpose", ["batch_output", "assistants_output", "fine-tune-results", "BATCH", "batch "])
def test_item_29_output_purposes_cannot_be_uploaded(sim_server: Server, purpose: str) -> None:
    assert_refused(upload(sim_server, LINE, purpose), 400, param="purpose")


def test_item_30_a_list_has_its_five_keys(sim_server: Server) -> None:
    file = _file(sim_server)
    page = _list(sim_server, "?limit=1")
    assert set(page) == {"object", "data", "first_id", "last_id", "has_more"}
    assert (page["object"], page["first_id"], page["last_id"]) == ("list", file["id"], file["id"])
    assert set(page["data"][0]) == FIELDS
    empty = _list(sim_server, "?purpose=none")
    assert empty == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_item_31_a_list_is_newest_first_unless_asked_otherwise(sim_server: Server) -> None:
    made = [_file(sim_server, purpose="fine-tune")["id"] for _ in range(3)]
    assert list(_walk(sim_server, "?purpose=fine-tune"))[:3] == made[::-1]
    assert list(_walk(sim_server, "?purpose=fine-tune&order=desc"))[:3] == made[::-1]
    assert list(_walk(sim_server, "?purpose=fine-tune&order=asc"))[-3:] == made
    assert_refused(sim_server.request("GET", "/v1/files?order=up"), 400, param="order", code="invalid_value")


def test_item_32_batch_output_lists_exactly_output_and_error_files(sim_server: Server) -> None:
    before = set(_walk(sim_server, "?purpose=batch_output"))
    batch = sim_server.wait(sim_server.create([chat_line("good"), chat_line("bad", "[[sim:400]]")]))
    made = set(_walk(sim_server, "?purpose=batch_output")) - before
    assert made == {batch["output_file_id"], batch["error_file_id"]}


@pytest.mark.parametrize("order", ["asc", "desc"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_item_33_pages_of_any_size_hold_each_file_once(sim_server: Server, limit: int, order: str) -> None:
    key = sim_server.new_key(f"paging-{uuid4().hex[:8]}")
    headers = {"Authorization": f"Bearer {key}"}
    made = []
    for _ in range(3):
        body = multipart([("purpose", None, "batch"), ("file", "input.jsonl", LINE)])
        headers["Content-Type"] = "multipart/form-data; boundary=edge"
        made.append(sim_server.request("POST", "/v1/files", body, headers=headers)[2]["id"])
    found, after = [], ""
    while True:
        page = sim_server.request("GET", f"/v1/files?limit={limit}&order={order}{after}", headers=headers)[2]
        found += [file["id"] for file in page["data"]]
        assert len(page["data"]) <= limit
        if not page["has_more"]:
            break
        after = f"&after={page['data'][-1]['id']}"
    assert found == (made if order == "asc" else made[::-1])


@pytest.mark.parametrize(
    ("limit", "code"),
    [
        ("0", "integer_below_min_value"),
        ("-1", "integer_below_min_value"),
        ("10001", "integer_above_max_value"),
        ("9" * 5000, "invalid_type"),
        ("ten", "invalid_type"),
        ("1.5", "invalid_type"),
        ("", "invalid_type"),
        ("--1", "invalid_type"),
        ("-", "invalid_type"),
        ("%D9%A1", "invalid_type"),
    ],
)
def test_item_34_a_limit_out_of_bounds_is_400(sim_server: Server, limit: str, code: str) -> None:
    assert_refused(sim_server.request("GET", f"/v1/files?limit={limit}"), 400, param="limit", code=code)


def test_item_34_the_bounds_themselves_are_taken(sim_server: Server) -> None:
    assert len(_list(sim_server, "?limit=1")["data"]) == 1
    assert len(_list(sim_server, "?limit=10000")["data"]) > 1


def test_item_35_an_unknown_cursor_is_400(sim_server: Server, other_key: str) -> None:
    assert_refused(sim_server.request("GET", f"/v1/files?after={UNKNOWN}"), 400, param="after")
    foreign = sim_server.upload(LINE)
    assert_refused(sim_server.request("GET", f"/v1/files?after={foreign}", key=other_key), 400, param="after")


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_item_35_paging_is_exact_while_files_are_added_and_many_share_a_second(sim_server: Server, order: str) -> None:
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda _: _file(sim_server, purpose="evals")["id"], range(12)))
        sim_server.query("UPDATE files_file SET created_at = now() WHERE id = ANY(%s) RETURNING 1", made)
        stop = threading.Event()

        def add() -> None:
            # No more than this: an ascending walk might never come to the end of a list that always grows.
            for _ in range(40):
                if stop.is_set():
                    return
                _file(sim_server, purpose="evals")

        adding = threads.submit(add)
        try:
            found = list(_walk(sim_server, f"?purpose=evals&limit=2&order={order}"))
        finally:
            stop.set()
        adding.result()
    assert len(found) == len(set(found))
    assert set(made) <= set(found)


def test_item_35_a_file_deleted_between_two_pages_still_marks_its_place(sim_server: Server) -> None:
    made = [_file(sim_server, purpose="evals")["id"] for _ in range(3)]
    first = _list(sim_server, "?purpose=evals&limit=1")["data"][0]["id"]
    assert first == made[2]
    sim_server.request("DELETE", f"/v1/files/{first}")
    assert _list(sim_server, f"?purpose=evals&limit=1&after={first}")["data"][0]["id"] == made[1]


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("DELETE", ""), ("GET", "/content")])
def test_item_36_an_unknown_file_is_404(sim_server: Server, method: str, tail: str) -> None:
    answer = sim_server.request(method, f"/v1/files/{UNKNOWN}{tail}")
    assert_refused(answer, 404, f"No such File object: {UNKNOWN}", param="id", code=None)


def test_item_37_a_deleted_file_is_gone(sim_server: Server) -> None:
    file_id = _file(sim_server)["id"]
    status, _, body = sim_server.request("DELETE", f"/v1/files/{file_id}")
    assert (status, body) == (200, {"id": file_id, "object": "file", "deleted": True})
    for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert_refused(sim_server.request(method, f"/v1/files/{file_id}{tail}"), 404, param="id")
    assert file_id not in set(_walk(sim_server, "?purpose=batch"))


def test_item_37_a_batch_whose_input_is_deleted_while_it_runs_keeps_all_its_lines(sim_server: Server) -> None:
    batch_id = sim_server.create([chat_line("slow", "[[sim:slow:1]]"), *(chat_line(str(i)) for i in range(5))])
    batch = sim_server.wait(batch_id, statuses=["in_progress", "finalizing", "completed"])
    assert sim_server.request("DELETE", f"/v1/files/{batch['input_file_id']}")[0] == 200
    batch = sim_server.wait(batch_id)
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 6)


def test_item_37_deleting_an_output_file_leaves_the_batch_as_it_was(sim_server: Server) -> None:
    batch = sim_server.wait(sim_server.create([chat_line("1")]))
    assert sim_server.request("DELETE", f"/v1/files/{batch['output_file_id']}")[0] == 200
    assert sim_server.batch(batch["id"]) == batch


def test_item_38_content_is_the_bytes_that_were_sent(sim_server: Server) -> None:
    content = LINE + bytes(range(256)) * 5000 + b"\r\n--edge--\r\n\xef\xbb\xbf\0"
    file = _file(sim_server, content)
    status, headers, body = sim_server.request("GET", f"/v1/files/{file['id']}/content")
    assert (status, body) == (200, content)
    assert headers["content-type"] == "application/octet-stream"
    assert int(headers["content-length"]) == file["bytes"] == len(content)


@pytest.mark.parametrize("purpose", ["user_data", "assistants"])
def test_item_39_content_of_a_private_purpose_is_400(sim_server: Server, purpose: str) -> None:
    file = _file(sim_server, purpose=purpose)
    answer = sim_server.request("GET", f"/v1/files/{file['id']}/content")
    assert_refused(answer, 400, f"Not allowed to download files of purpose: {purpose}", param=None, code=None)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_item_40_a_file_of_any_purpose_is_processed_at_once(sim_server: Server, purpose: str) -> None:
    file = _file(sim_server, purpose=purpose)
    assert sim_server.request("GET", f"/v1/files/{file['id']}")[2]["status"] == "processed"


def test_item_41_an_expired_file_is_gone(sim_server: Server) -> None:
    file_id = _file(sim_server, anchor="created_at", seconds="3600")["id"]
    assert file_id in set(_walk(sim_server, "?purpose=batch"))
    sim_server.query("UPDATE files_file SET expires_at = now() WHERE id = %s RETURNING 1", file_id)
    for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert_refused(sim_server.request(method, f"/v1/files/{file_id}{tail}"), 404, param="id")
    assert file_id not in set(_walk(sim_server, "?purpose=batch"))


def test_item_42_a_file_of_another_tenant_is_404(sim_server: Server, other_key: str) -> None:
    file_id = _file(sim_server)["id"]
    for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        answer = sim_server.request(method, f"/v1/files/{file_id}{tail}", key=other_key)
        assert_refused(answer, 404, f"No such File object: {file_id}", param="id", code=None)
    assert file_id not in {file["id"] for file in _list(sim_server, key=other_key)["data"]}
    assert sim_server.request("GET", f"/v1/files/{file_id}")[0] == 200


def test_item_42_another_tenants_input_file_is_not_found(sim_server: Server, other_key: str) -> None:
    wanted = {
        "input_file_id": sim_server.upload(chat_line("1", model=MODEL)),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    headers = {"Authorization": f"Bearer {other_key}"}
    status, _, batch = sim_server.request("POST", "/v1/batches", wanted, headers=headers)
    assert status == 200
    while batch["status"] == "validating":
        batch = sim_server.request("GET", f"/v1/batches/{batch['id']}", headers=headers)[2]
    assert (batch["status"], batch["errors"]["data"][0]["param"]) == ("failed", "file_id")
