"""A crowd is refused at once, slow clients hold up nobody, and all is well again when they have gone."""

import http.client
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from vbatch_site.tests.contract.forms import assert_refused, multipart
from vbatch_site.tests.servers import Web, chat_line, wait_until

MOST = 8
CLIENTS = 60
# More than the connections that a web process has to the database.
SLOW = 24


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """One web process that takes few requests at a time; nobody runs batches."""
    with Web(tmp_path_factory.mktemp("overload"), VBATCH_WEB_REQUESTS=str(MOST)) as server:
        yield server


def _begin(web: Web, head: str, body: bytes = b"") -> socket.socket:
    """Send the beginning of a request and leave it at that."""
    connection = socket.create_connection(("127.0.0.1", web.port), timeout=60)
    connection.sendall(f"{head}\r\nHost: x\r\nAuthorization: Bearer {web.key}\r\n".encode() + body)
    return connection


def _answer(connection: socket.socket) -> int:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status


def test_a_crowd_is_refused_at_once_and_let_in_again_when_there_is_room(web: Web) -> None:
    form = multipart([("purpose", None, "vision"), ("file", "f", b"x" * 1000)])
    head = f"Content-Type: multipart/form-data; boundary=edge\r\nContent-Length: {len(form)}\r\n\r\n".encode()
    # Uploads that stop half way are requests that wait for their answers.
    uploads = [_begin(web, "POST /v1/files HTTP/1.1", head + form[:500]) for _ in range(MOST)]
    wait_until(lambda: web.request("GET", "/v1/files")[0] == 503)
    started = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda _: web.request("GET", "/v1/batches"), range(CLIENTS)))
    # Waiting, they would have waited until the uploads went on.
    assert time.monotonic() - started < 30
    for answer in answers:
        assert_refused(answer, 503, code="server_overloaded")
        assert 1 <= int(answer[1]["retry-after"]) <= 2
        assert 500 <= int(answer[1]["retry-after-ms"]) <= 2000
    # Whoever looks at a busy server is answered.
    assert web.request("GET", "/health", key=None)[0] == 200
    assert web.request("GET", "/admin/login/", key=None)[0] == 200
    for connection in uploads:
        connection.sendall(form[500:])
    assert Counter(map(_answer, uploads)) == {200: MOST}
    for connection in uploads:
        connection.close()
    assert web.request("GET", "/v1/batches")[0] == 200


def test_slow_downloads_and_event_streams_hold_up_nobody(web: Web) -> None:
    file_id = web.upload(chat_line("a", "x" * 1000) * 8000)
    batch_id = web.create(chat_line("a"))
    # Nothing is read of them, so that the server waits for room to send.
    heads = [f"GET /v1/files/{file_id}/content HTTP/1.1"] * SLOW
    heads += [f"GET /v1/batches/{batch_id}/results HTTP/1.1\r\nAccept: text/event-stream"] * SLOW
    slow = []
    for head in heads:
        slow.append(_begin(web, head, b"\r\n"))
        assert _answer(slow[-1]) == 200
    started = time.monotonic()
    for _ in range(5):
        assert web.request("GET", "/v1/files")[0] == 200
    # The pool would be waited for 20 s.
    assert time.monotonic() - started < 15
    for connection in slow:
        connection.close()
