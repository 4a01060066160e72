"""What several web processes on one database agree upon."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import pytest

from vbatch_site.tests.contract.forms import assert_refused, multipart
from vbatch_site.tests.servers import Web

CLIENTS = 200
FORM = {"Content-Type": "multipart/form-data; boundary=edge"}


@pytest.fixture(scope="module")
def webs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, Web]]:
    home = tmp_path_factory.mktemp("webs")
    with Web(home) as first, Web(home, database=first.database) as second:
        yield first, second


def test_a_revoked_key_ends_at_once_in_all_processes(webs: tuple[Web, Web]) -> None:
    key = webs[0].new_key()
    assert [web.request("GET", "/v1/files", key=key)[0] for web in webs] == [200, 200]
    webs[0].execute("UPDATE vbatch_site_apikey SET revoked_at = now() WHERE prefix = %s", key[:12])
    assert [web.request("GET", "/v1/files", key=key)[0] for web in webs] == [401, 401]


def _tenant(web: Web, **limits: int) -> str:
    """Return the key of a new project with these limits."""
    name = f"p{uuid4().hex[:8]}"
    key = web.new_key(name)
    for field, value in limits.items():
        web.execute(f"UPDATE vbatch_site_project SET {field} = %s WHERE name = %s", value, name)  # noqa: S608
    return key


def _at_once(webs: tuple[Web, Web], ask: Callable[[Web], tuple[int, dict[str, str], Any]]) -> Counter[int]:
    """Let 200 clients ask at the same time, half of them each process; return how many got which status."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = list(pool.map(lambda i: ask(webs[i % 2]), range(CLIENTS)))
    for status, headers, _ in answers:
        assert status == 200 or status == 413 or int(headers["retry-after"]) >= 1
    return Counter(status for status, _, _ in answers)


def _upload(web: Web, key: str, size: int, filename: str = "f") -> tuple[int, dict[str, str], Any]:
    form = multipart([("purpose", None, "vision"), ("file", filename, b"x" * size)])
    return web.request("POST", "/v1/files", form, key=key, headers=FORM)


def test_200_clients_of_two_processes_stay_within_the_request_rate(webs: tuple[Web, Web]) -> None:
    # A request comes back every three seconds, and 20 may come at once.
    key = _tenant(webs[0], requests_per_minute=20)
    started = time.monotonic()
    counts = _at_once(webs, lambda web: web.request("GET", "/v1/files", key=key))
    taken = time.monotonic() - started
    assert counts.keys() == {200, 429}
    assert 20 <= counts[200] <= 20 + taken // 3


def test_200_clients_of_two_processes_stay_within_the_batches_of_an_hour(webs: tuple[Web, Web]) -> None:
    key = _tenant(webs[0], batches_per_hour=17)
    wanted = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    assert _at_once(webs, lambda web: web.request("POST", "/v1/batches", wanted, key=key)) == {200: 17, 429: 183}


def test_200_clients_of_two_processes_stay_within_the_storage(webs: tuple[Web, Web]) -> None:
    key = _tenant(webs[0], storage_bytes=10_500)
    assert _at_once(webs, lambda web: _upload(web, key, 1000)) == {200: 10, 413: 190}
    stored = webs[0].query(
        "SELECT sum(bytes) FROM files_file f JOIN vbatch_site_apikey k USING (project_id) WHERE k.prefix = %s", key[:12]
    )
    assert stored == [(10_000,)]


def test_deleting_a_file_makes_room_at_once(webs: tuple[Web, Web]) -> None:
    key = _tenant(webs[0], storage_bytes=100)
    first = _upload(webs[0], key, 60)[2]["id"]
    assert_refused(_upload(webs[1], key, 60), 413, code="storage_limit_exceeded")
    assert _upload(webs[1], key, 40)[0] == 200
    webs[0].request("DELETE", f"/v1/files/{first}", key=key)
    assert _upload(webs[1], key, 60)[0] == 200


def test_parts_count_from_their_arrival_and_their_file_not_again(webs: tuple[Web, Web]) -> None:
    web, key = webs[0], _tenant(webs[0], storage_bytes=100)
    wanted = {"bytes": 60, "filename": "f", "mime_type": "text/plain", "purpose": "vision"}
    path = f"/v1/uploads/{web.request('POST', '/v1/uploads', wanted, key=key)[2]['id']}"
    form = multipart([("data", "p", b"x" * 60)])
    part = web.request("POST", f"{path}/parts", form, key=key, headers=FORM)[2]["id"]
    assert_refused(web.request("POST", f"{path}/parts", form, key=key, headers=FORM), 413)
    assert_refused(_upload(web, key, 60), 413)
    assert web.request("POST", f"{path}/complete", {"part_ids": [part]}, key=key)[0] == 200
    assert _upload(web, key, 40)[0] == 200
