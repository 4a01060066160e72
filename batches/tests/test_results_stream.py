"""Results while a batch runs and after it ended: each line once, none skipped, in files' own bytes."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from django.db import connection, transaction

from batches import leases
from batches.models import Result
from batches.outcome import Outcome
from batches.results import Reader
from batches.states import BatchStatus
from batches.tests.rows import MODEL, new_batch
from vbatch_site.tests.servers import TERMINAL, Server, chat_line, wait_until
from vbatch_site.tests.speed import slowness


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose engine answers 100 lines a second."""
    with Server(tmp_path_factory.mktemp("stream") / "home", VBATCH_SIM_LINES_PER_SECOND="100") as server:
        yield server


def _page(server: Server, batch_id: str, after: int = 0, limit: int = 1000) -> tuple[list[bytes], int]:
    status, headers, body = server.request("GET", f"/v1/batches/{batch_id}/results?after={after}&limit={limit}")
    assert status == 200, body
    assert headers["content-type"] == "application/x-ndjson"
    return body.splitlines(keepends=True), int(headers["x-next-after"])


def _files(server: Server, batch_id: str) -> list[bytes]:
    batch = server.batch(batch_id)
    lines: list[bytes] = []
    for name in ("output_file_id", "error_file_id"):
        if batch[name]:
            lines += server.request("GET", f"/v1/files/{batch[name]}/content")[2].splitlines(keepends=True)
    return lines


@contextmanager
def _events(server: Server, batch_id: str, last: str | None = None) -> Iterator[http.client.HTTPResponse]:
    headers = {"Authorization": f"Bearer {server.key}", "Accept": "text/event-stream"}
    if last is not None:
        headers["Last-Event-ID"] = last
    stream = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        stream.request("GET", f"/v1/batches/{batch_id}/results", headers=headers)
        response = stream.getresponse()
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream"
        yield response
    finally:
        stream.close()


def _read_events(response: http.client.HTTPResponse) -> Iterator[dict[str, str]]:
    """Yield events as their fields."""
    event: dict[str, str] = {}
    while line := response.readline().decode():
        if line == "\n":
            if "data" in event:
                yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.rstrip("\n").partition(": ")
            event[name] = value


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_of_two_commits_at_once_the_later_one_is_never_seen_before_the_earlier_one() -> None:
    batch = new_batch(lines=6, shard_lines=3)
    batch.move(BatchStatus.IN_PROGRESS, total=6)
    first, second = (leases.claim(batch.pk, MODEL, holder) for holder in "ab")
    assert first and second
    written, may_commit = threading.Event(), threading.Event()

    def commit(lease: leases.Lease, wait: bool) -> None:
        try:
            with transaction.atomic():
                leases.commit([(lease, Outcome(batch.pk, line.number, "c", 200, "", b"{}")) for line in lease.lines])
                written.set()
                if wait:
                    may_commit.wait(20)
        finally:
            connection.close()

    slow = threading.Thread(target=commit, args=(first, True))
    quick = threading.Thread(target=commit, args=(second, False))
    slow.start()
    written.wait(20)
    quick.start()
    quick.join(0.5)
    # The second has to wait: its lines must not be numbered before those of the first can be seen.
    assert quick.is_alive()
    assert Reader(batch).read(0) == ([], False)
    may_commit.set()
    for thread in (slow, quick):
        thread.join(20)
    lines, _ = Reader(batch).read(0)
    assert [line.position for line in lines] == [1, 2, 3, 4, 5, 6]
    by_position = Result.objects.filter(batch=batch).order_by("position").values_list("line", flat=True)
    assert list(by_position) == [1, 2, 3, 4, 5, 6]


def test_a_cursor_taken_while_a_batch_runs_goes_on_in_its_files(server: Server) -> None:
    lines = [chat_line(f"l{i}", "[[sim:400]]" if i % 10 == 3 else "hello") for i in range(400)]
    batch_id = server.create(lines)
    got: list[bytes] = []
    after = 0
    seen_running = False
    while True:
        ended = server.batch(batch_id)["status"] in TERMINAL
        page, after = _page(server, batch_id, after, 37)
        got += page
        seen_running |= bool(page) and not ended
        if ended and not page:
            break
    assert seen_running
    files = _files(server, batch_id)
    assert len(got) == 400
    assert sorted(got) == sorted(files)
    assert _page(server, batch_id, 0, 10_000) == (got, after)


def test_events_resume_after_the_last_one_and_end_with_done(server: Server) -> None:
    # One line holds the batch open for as long as it takes to be seen in the middle.
    batch_id = server.create([*(chat_line(f"e{i}") for i in range(200)), chat_line("held", "[[sim:hang]]")])
    with _events(server, batch_id) as response:
        events = _read_events(response)
        early = [next(events) for _ in range(20)]
    assert server.batch(batch_id)["status"] == "in_progress"
    with _events(server, batch_id, early[-1]["id"]) as response:
        events = _read_events(response)
        rest = [next(events) for _ in range(180)]
        server.request("POST", f"/v1/batches/{batch_id}/cancel")
        rest += events
    done = rest.pop()
    assert done["event"] == "done"
    batch = server.batch(batch_id)
    assert json.loads(done["data"]) == {
        name: batch[name] for name in ("id", "status", "output_file_id", "error_file_id")
    }
    assert sorted(event["data"].encode() + b"\n" for event in early + rest) == sorted(_files(server, batch_id))
    with _events(server, batch_id, done["id"]) as response:
        assert [event["event"] for event in _read_events(response)] == ["done"]


def test_lines_that_never_ran_come_last(server: Server) -> None:
    batch_id = server.create([chat_line("ran"), *(chat_line(f"n{i}", "[[sim:hang]]") for i in range(3))])
    wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] == 1)
    first, after = _page(server, batch_id)
    server.request("POST", f"/v1/batches/{batch_id}/cancel")
    server.wait(batch_id)
    rest, _ = _page(server, batch_id, after)
    assert sorted(first + rest) == sorted(_files(server, batch_id))
    assert {json.loads(line)["error"]["code"] for line in rest} == {"batch_cancelled"}


def test_open_streams_hold_neither_threads_nor_database_connections(server: Server) -> None:
    batch_id = server.create([chat_line("a", "[[sim:hang]]")])
    server.wait(batch_id, statuses=["in_progress"])
    streams = [_events(server, batch_id) for _ in range(60)]
    before = server.web().num_threads()
    try:
        for stream in streams:
            stream.__enter__().readline()
        time.sleep(1)
        assert server.web().num_threads() < before + 20
        used = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        assert server.query(used)[0][0] < 40
        assert server.batch(batch_id)["status"] == "in_progress"
        # Of a core: streams that wait for a result ask for it now and then, and don't go round and round.
        cpu = psutil.Process(server.web().pid)
        cpu.cpu_percent()
        time.sleep(2)
        assert cpu.cpu_percent() < 50 * slowness()
    finally:
        for stream in streams:
            stream.__exit__(None, None, None)
        server.request("POST", f"/v1/batches/{batch_id}/cancel")
        server.wait(batch_id)


def test_deleted_results_are_said_to_be_deleted(server: Server) -> None:
    batch = server.wait(server.create([chat_line("a")]))
    server.request("DELETE", f"/v1/files/{batch['output_file_id']}")
    status, _, answer = server.request("GET", f"/v1/batches/{batch['id']}/results")
    assert (status, answer["error"]["code"]) == (404, "results_deleted")


@pytest.mark.parametrize("query", ["after=x", "after=-1", "limit=0", "limit=10001", "after=1e3"])
def test_a_bad_cursor_is_refused(server: Server, query: str) -> None:
    batch_id = server.create([chat_line("a")])
    status, _, answer = server.request("GET", f"/v1/batches/{batch_id}/results?{query}")
    assert (status, answer["error"]["param"]) == (400, query.partition("=")[0])
    server.wait(batch_id)


def test_another_project_s_results_are_not_found(server: Server) -> None:
    batch_id = server.create([chat_line("a")])
    other = server.new_key("other")
    assert server.request("GET", f"/v1/batches/{batch_id}/results", key=other)[0] == 404
    server.wait(batch_id)
