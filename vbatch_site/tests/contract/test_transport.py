"""Items 1 to 14: what holds for every route."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from vbatch_site.tests.contract.forms import (
    LINE,
    Answer,
    assert_nothing_left,
    assert_refused,
    multipart,
    send_form,
    upload,
    uploaded_files,
)
from vbatch_site.tests.servers import Server, chat_line, wait_until

UNKNOWN_FILE = "file-1111111111111111111111"
UNKNOWN_BATCH = "batch_" + "0" * 32

# One request for each kind of answer that the API gives.
REQUESTS: list[tuple[str, str, int]] = [
    ("GET", "/v1/files", 200),
    ("GET", "/v1/batches", 200),
    ("GET", "/v1/models", 200),
    ("POST", "/v1/batches", 400),
    ("GET", "/v1/batches/wrong", 400),
    ("GET", f"/v1/files/{UNKNOWN_FILE}", 404),
    ("GET", f"/v1/batches/{UNKNOWN_BATCH}", 404),
    ("GET", "/v1/models/none", 404),
    ("GET", "/v1/nothing/here", 404),
    ("GET", "/nothing", 404),
    ("PUT", "/v1/files", 405),
    ("DELETE", "/v1/batches", 405),
    ("POST", "/v1/models", 405),
]


def _pieces(body: bytes, size: int = 1000) -> Iterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


@pytest.mark.parametrize("file_first", [False, True], ids=["purpose first", "file first"])
def test_items_1_and_2_a_chunked_upload_without_length_stores_all_bytes(sim_server: Server, file_first: bool) -> None:
    content = LINE * 50_000
    parts = [("purpose", None, b"batch"), ("file", "input.jsonl", content)]
    body = multipart(parts[::-1] if file_first else parts)
    status, _, file = send_form(sim_server, _pieces(body, 70_001))
    assert (status, file["bytes"]) == (200, len(content))
    assert sim_server.request("GET", f"/v1/files/{file['id']}/content")[2] == content


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/files"),
        ("POST", "/v1/files"),
        ("GET", f"/v1/files/{UNKNOWN_FILE}"),
        ("DELETE", f"/v1/files/{UNKNOWN_FILE}"),
        ("GET", f"/v1/files/{UNKNOWN_FILE}/content"),
        ("GET", "/v1/batches"),
        ("POST", "/v1/batches"),
        ("GET", f"/v1/batches/{UNKNOWN_BATCH}"),
        ("POST", f"/v1/batches/{UNKNOWN_BATCH}/cancel"),
        ("GET", "/v1/models"),
    ],
)
def test_item_3_no_route_needs_a_trailing_slash_or_redirects_to_one(sim_server: Server, method: str, path: str) -> None:
    status, _, body = sim_server.request(method, path)
    assert status in (200, 400, 404)
    assert status == 200 or "Invalid URL" not in body["error"]["message"]
    with_slash = sim_server.request(method, path + "/")
    assert "location" not in with_slash[1]
    assert_refused(with_slash, 404)


@pytest.mark.parametrize("kind", [{"Content-Type": "application/json"}, {}], ids=["json type", "no type"])
def test_item_4_cancel_takes_an_empty_body(sim_server: Server, kind: dict[str, str]) -> None:
    batch = sim_server.create([chat_line("1", "[[sim:hang]]")])
    status, _, body = sim_server.request("POST", f"/v1/batches/{batch}/cancel", headers={"Content-Length": "0", **kind})
    assert (status, body["status"]) == (200, "cancelling")
    assert sim_server.wait(batch)["status"] == "cancelled"


def test_item_5_delete_takes_a_json_type_without_a_body(sim_server: Server) -> None:
    file_id = sim_server.upload(LINE)
    status, _, body = sim_server.request("DELETE", f"/v1/files/{file_id}", headers={"Content-Type": "application/json"})
    assert (status, body["deleted"]) == (200, True)


@pytest.mark.parametrize("accept", ["application/binary", "*/*", "application/json", "text/html"])
def test_item_6_content_is_given_whatever_is_accepted(sim_server: Server, accept: str) -> None:
    file_id = sim_server.upload(LINE)
    status, _, body = sim_server.request("GET", f"/v1/files/{file_id}/content", headers={"Accept": accept})
    assert (status, body) == (200, LINE)


@pytest.mark.parametrize(("method", "path", "wanted"), REQUESTS)
def test_items_7_to_9_and_12_every_answer_has_its_headers_and_every_error_the_envelope(
    sim_server: Server, method: str, path: str, wanted: int
) -> None:
    answer = status, headers, _ = sim_server.request(method, path, {} if method == "POST" else None)
    assert status == wanted
    assert headers["content-type"] == "application/json"
    assert re.fullmatch("req_[0-9a-f]{32}", headers["x-request-id"])
    assert headers["openai-version"] == "2020-10-01"
    assert headers["openai-processing-ms"].isdecimal()
    if wanted >= 400:
        assert_refused(answer, wanted)
    if wanted == 405:
        assert headers["allow"]


def test_item_7_delete_answers_200_with_json(sim_server: Server) -> None:
    status, headers, body = sim_server.request("DELETE", f"/v1/files/{sim_server.upload(LINE)}")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert body["object"] == "file"


def test_item_8_two_answers_have_two_request_ids(sim_server: Server) -> None:
    first, second = (sim_server.request("GET", "/v1/models")[1]["x-request-id"] for _ in range(2))
    assert first != second


def test_item_10_a_missing_key_is_401_with_a_challenge(sim_server: Server) -> None:
    answer = sim_server.request("GET", "/v1/files", key=None)
    assert_refused(answer, 401, "Missing bearer or basic authentication in header", code=None)
    assert answer[1]["www-authenticate"].startswith("Bearer")
    answer = sim_server.request("GET", "/v1/files", key="sk-wrong-but-long-enough")
    assert_refused(answer, 401, code="invalid_api_key")
    assert "wrong-but-long" not in answer[2]["error"]["message"]


def test_item_10_an_upload_without_a_key_is_refused_before_its_bytes_are_read(sim_server: Server) -> None:
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
        "Content-Length: 500000000\r\n\r\n--edge\r\n"
    )
    with socket.create_connection(("127.0.0.1", sim_server.port), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
    assert_nothing_left(sim_server)


def test_item_11_organization_and_project_headers_are_tolerated(sim_server: Server) -> None:
    named = {"OpenAI-Organization": "org-x", "OpenAI-Project": "proj_x", "OpenAI-Beta": "assistants=v2"}
    assert sim_server.request("GET", "/v1/files", headers=named)[0] == 200


def test_item_13_an_unknown_path_is_the_envelope_for_a_program_and_a_page_for_a_browser(sim_server: Server) -> None:
    assert_refused(sim_server.request("GET", "/v2/files"), 404, "Invalid URL (GET /v2/files)")
    status, headers, _ = sim_server.request("GET", "/v2/files", headers={"Accept": "text/html,*/*"})
    assert (status, headers["content-type"].partition(";")[0]) == (404, "text/html")


DEEP = b'{"input_file_id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    "body",
    [b"{", b"not json", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": "\\ud800"}', b"\xff\xfe", b"\xef\xbb\xbf{}", DEEP],
    ids=["cut", "words", "nan", "infinity", "surrogate", "no utf-8", "bom", "deep"],
)
def test_item_14_a_body_that_is_no_json_is_400(sim_server: Server, body: bytes) -> None:
    answer = sim_server.request("POST", "/v1/batches", body, headers={"Content-Type": "application/json"})
    assert_refused(answer, 400, code="invalid_json")


@pytest.mark.parametrize("body", [b"[]", b"1", b'"text"', b"null", b"9" * 5000])
def test_item_14_a_body_that_is_no_object_is_400(sim_server: Server, body: bytes) -> None:
    answer = sim_server.request("POST", "/v1/batches", body, headers={"Content-Type": "application/json"})
    assert_refused(answer, 400)


def test_item_14_a_json_body_without_length_is_read(sim_server: Server) -> None:
    answer = sim_server.request("POST", "/v1/batches", iter([b'{"input_file', b'_id": 7}']))
    assert_refused(answer, 400, param="input_file_id", code="invalid_type")


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=e"])
def test_a_body_of_another_type_is_415(sim_server: Server, kind: str) -> None:
    answer = sim_server.request("POST", "/v1/batches", b"{}", headers={"Content-Type": kind})
    assert_refused(answer, 415, code="unsupported_content_type")


@pytest.mark.parametrize("path", ["/v1/batches", "/v1/files"])
def test_a_compressed_body_is_415(sim_server: Server, path: str) -> None:
    kind = "application/json" if path == "/v1/batches" else "multipart/form-data; boundary=edge"
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    answer = sim_server.request("POST", path, b"\x1f\x8b", headers=headers)
    assert_refused(answer, 415, code="unsupported_content_encoding")


def _spaces(megabytes: int) -> Iterator[bytes]:
    yield b"{"
    for _ in range(megabytes):
        yield b" " * (1 << 20)


@pytest.mark.parametrize("megabytes", [9, 40])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_a_json_body_too_large_is_413(sim_server: Server, megabytes: int, chunked: bool) -> None:
    body = _spaces(megabytes) if chunked else b"".join(_spaces(megabytes))
    answer = sim_server.request("POST", "/v1/batches", body, headers={"Content-Type": "application/json"})
    assert_refused(answer, 413, code="request_too_large")
    assert answer[1]["openai-version"]


def _form(purpose: bytes = b"batch", content: bytes = LINE) -> bytes:
    return multipart([("purpose", None, purpose), ("file", "input.jsonl", content)])


WHOLE = _form(content=LINE * 1000)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (WHOLE[:5], 400),
        (WHOLE[:200], 400),
        (WHOLE[: len(WHOLE) // 2], 400),
        (WHOLE[:-10], 400),
        (b"", 400),
        (b"\0" * 5000, 400),
        (WHOLE.replace(b"--edge", b"--other"), 400),
        (WHOLE.replace(b"\r\n", b"\n"), 400),
        (WHOLE.replace(b'name="purpose"', b'name="\0\xff"'), 400),
        (WHOLE.replace(b"\r\n\r\nbatch", b"\r\n\r\nbat\0ch"), 400),
        (WHOLE.replace(b"\r\n\r\nbatch", b"\r\n\r\n\xff\xfe"), 400),
        (multipart([(f"field{i}", None, b"x") for i in range(10_000)]), 400),
        (multipart([(f"file{i}", "name", b"x") for i in range(10_000)]), 400),
        (multipart([("purpose", None, b"batch" * 3_000_000), ("file", "input.jsonl", LINE)]), 400),
        (b"--edge\r\n" + b"X-Long: " + b"x" * 2_000_000 + b"\r\n\r\n" + WHOLE, 400),
    ],
    ids=[
        "5 bytes",
        "in the head",
        "half",
        "without the last boundary",
        "nothing",
        "zeros",
        "another boundary",
        "bare newlines",
        "name with a nul",
        "purpose with a nul",
        "purpose without utf-8",
        "10,000 fields",
        "10,000 files",
        "a long field",
        "a long header",
    ],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_hostile_multipart_is_refused_and_leaves_nothing(
    sim_server: Server, body: bytes, status: int, chunked: bool
) -> None:
    before = uploaded_files(sim_server)
    assert_refused(send_form(sim_server, _pieces(body, 60_000) if chunked else body), status)
    assert uploaded_files(sim_server) == before
    assert_nothing_left(sim_server)


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=\xe9"]
)
def test_multipart_without_a_usable_boundary_is_400(sim_server: Server, kind: str) -> None:
    assert_refused(sim_server.request("POST", "/v1/files", _form(), headers={"Content-Type": kind}), 400)


@pytest.mark.parametrize(
    "filename", ["a\0b.jsonl", "../../etc/passwd", "a\rb", "\u202egnp.jsonl", "x" * 600, "C:\\dir\\in.jsonl"]
)
def test_a_hostile_filename_is_cleaned_and_never_a_path(sim_server: Server, filename: str) -> None:
    status, _, file = upload(sim_server, LINE, filename=filename)
    assert status == 200
    assert file["filename"] and len(file["filename"]) <= 512
    assert all(char.isprintable() and char not in "/\\" for char in file["filename"])
    assert sim_server.request("GET", f"/v1/files/{file['id']}/content")[2] == LINE
    assert_nothing_left(sim_server)


@contextmanager
def _half_an_upload(server: Server) -> Iterator[None]:
    """Hold open a connection that has sent the first half of a good upload."""
    body = _form(content=LINE * 200_000)
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=edge\r\n"
        f"Authorization: Bearer {server.key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode() + body[: len(body) // 2])
        yield


def test_a_client_that_goes_away_leaves_nothing(sim_server: Server) -> None:
    before = uploaded_files(sim_server)
    with _half_an_upload(sim_server):
        wait_until(lambda: any((sim_server.home / "tmp").iterdir()))
    assert_nothing_left(sim_server)
    assert uploaded_files(sim_server) == before


def test_uploads_that_stall_hold_up_nobody(sim_server: Server) -> None:
    with ExitStack() as stalled:
        # More than the web process has database connections.
        for _ in range(24):
            stalled.enter_context(_half_an_upload(sim_server))
        wait_until(lambda: len(list((sim_server.home / "tmp").iterdir())) == 24)
        started = time.monotonic()
        assert upload(sim_server, LINE)[0] == 200
        assert sim_server.request("GET", "/v1/files")[0] == 200
        assert time.monotonic() - started < 15, "they waited for a database connection"
    assert_nothing_left(sim_server)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/files/%00",
        "/v1/files/%ff%fe",
        "/v1/batches/batch_%00",
        "/v1/models/%00%ff",
        "/v1/files?purpose=%00",
        "/v1/files?after=%00",
        "/v1/files/" + "x" * 20_000,
        "/v1/%00",
        "/v1/files?limit=%F0%9F%92%A9",
        "/v1/files?limit=%C2%B2",
    ],
)
def test_hostile_paths_are_never_a_fault_of_ours(sim_server: Server, path: str) -> None:
    answer: Answer = sim_server.request("GET", path)
    assert answer[0] in (200, 400, 404), answer
    if answer[0] >= 400:
        assert_refused(answer, answer[0])


def test_an_internal_fault_is_logged_under_its_request_id_and_says_nothing_else(sim_server: Server) -> None:
    file_id = sim_server.upload(LINE)
    ((path,),) = sim_server.query("SELECT path FROM files_file WHERE id = %s", file_id)
    sim_server.query("UPDATE files_file SET path = '.' WHERE id = %s RETURNING 1", file_id)
    try:
        answer = sim_server.request("GET", f"/v1/files/{file_id}/content")
    finally:
        sim_server.query("UPDATE files_file SET path = %s WHERE id = %s RETURNING 1", path, file_id)
    assert_refused(answer, 500, param=None, code=None)
    request_id = answer[1]["x-request-id"]
    message = f"The server had an error while processing your request. Please quote request ID {request_id}."
    assert answer[2]["error"]["message"] == message
    log = sim_server.log.read_text()
    assert request_id in log
    assert "IsADirectoryError" in log
