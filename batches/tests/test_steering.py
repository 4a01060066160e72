"""Priority, pause and resume, on a running server."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from batches import leases, steering
from batches.states import BatchStatus
from batches.tests.rows import new_batch
from vbatch_site.tests.contract.forms import assert_refused
from vbatch_site.tests.servers import Server, chat_line, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose engine takes a tenth of a second for a line, 100 lines a second."""
    home = tmp_path_factory.mktemp("steer") / "home"
    with Server(home, VBATCH_SIM_LINES_PER_SECOND="100", VBATCH_COMPLETION_WINDOWS="24h,8s") as server:
        yield server


def _post(server: Server, path: str, body: Any = None) -> tuple[int, dict[str, str], Any]:
    return server.request("POST", f"/v1/batches/{path}", body)


def _done(server: Server, batch_id: str) -> int:
    counts = server.batch(batch_id)["request_counts"]
    return int(counts["completed"] + counts["failed"])


def _journal(server: Server, batch_id: str) -> list[str]:
    rows = server.query("SELECT kind, status FROM batches_batchevent WHERE batch_id = %s ORDER BY id", batch_id)
    return [status if kind == "status" else kind for kind, status in rows]


def test_a_pause_stops_new_lines_within_5_seconds_and_loses_none_that_is_finished(server: Server) -> None:
    lines = [f"pause-{i}" for i in range(600)]
    batch_id = server.create(chat_line(name, name) for name in lines)
    wait_until(lambda: _done(server, batch_id) > 50)
    status, _, answer = _post(server, f"{batch_id}/pause")
    asked = time.monotonic()
    assert (status, answer["status"], answer["vbatch"]["paused"]) == (200, "in_progress", True)
    assert _post(server, f"{batch_id}/pause")[0] == 200
    wait_until(lambda: not server.query("SELECT 1 FROM batches_shard WHERE state = 'leased'"))
    assert time.monotonic() - asked < 5
    started = len([text for text in server.requests_seen() if text.startswith("pause-")])
    done = _done(server, batch_id)
    assert 50 < done < 600
    time.sleep(2)
    assert _done(server, batch_id) == done
    assert len([text for text in server.requests_seen() if text.startswith("pause-")]) == started

    status, _, answer = _post(server, f"{batch_id}/resume")
    assert (status, answer["vbatch"]["paused"]) == (200, False)
    assert _post(server, f"{batch_id}/resume")[0] == 200
    batch = server.wait(batch_id)
    output, errors = server.lines(batch)
    assert not errors
    assert sorted(line["custom_id"] for line in output) == sorted(lines)
    assert batch["request_counts"] == {"total": 600, "completed": 600, "failed": 0}
    assert _journal(server, batch_id) == [
        "validating", "in_progress", "pause", "resume", "finalizing", "completed"
    ]  # fmt: skip


def test_lines_in_flight_for_longer_than_a_few_seconds_are_given_back_and_run_again(server: Server) -> None:
    batch_id = server.create(chat_line(f"s{i}", "[[sim:slow:30]]" if i == 1 else f"s{i}") for i in range(3))
    wait_until(lambda: _done(server, batch_id) == 2)
    _post(server, f"{batch_id}/pause")
    # Noticed in a second and a half, 2.5 s of grace, and the next look: sooner than the line could be done.
    wait_until(lambda: not server.query("SELECT 1 FROM batches_shard WHERE state = 'leased'"), 20)
    assert _done(server, batch_id) == 2
    _post(server, f"{batch_id}/resume")
    wait_until(lambda: server.requests_seen().count("[[sim:slow:30]]") == 2)
    assert server.requests_seen().count("s0") == 1
    server.request("POST", f"/v1/batches/{batch_id}/cancel")
    assert server.wait(batch_id)["request_counts"]["completed"] == 2


def test_the_window_goes_on_while_a_batch_is_paused(server: Server) -> None:
    batch_id = server.create([chat_line("a", "[[sim:hang]]")], completion_window="8s")
    assert _post(server, f"{batch_id}/pause")[0] == 200
    batch = server.wait(batch_id)
    assert batch["status"] == "expired"
    assert batch["vbatch"]["paused"] is False


@pytest.mark.django_db
def test_a_batch_paused_while_it_is_validated_does_not_start() -> None:
    batch = new_batch()
    steering.pause(batch, by="a test")
    batch.move(BatchStatus.IN_PROGRESS)
    assert leases.waiting() == []
    steering.resume(batch, by="a test")
    assert [waiting.batch_id for waiting in leases.waiting()] == [batch.pk]


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_batch_that_has_ended_cannot_be_paused_or_resumed(server: Server, verb: str) -> None:
    batch = server.wait(server.create([chat_line("a")]))
    answer = _post(server, f"{batch['id']}/{verb}")
    assert_refused(answer, 409, f"Cannot {verb} a batch with status 'completed'.")
    assert answer[1]["x-should-retry"] == "false"
    assert_refused(_post(server, batch["id"], {"priority": 1}), 409)


def test_priority_is_taken_shown_and_changed(server: Server) -> None:
    batch_id = server.create([chat_line("a", "[[sim:hang]]")], priority=-5)
    assert server.batch(batch_id)["vbatch"]["priority"] == -5
    status, _, answer = _post(server, batch_id, {"priority": 100})
    assert (status, answer["vbatch"]["priority"]) == (200, 100)
    assert _post(server, batch_id, {"priority": 100})[0] == 200
    assert [kind for kind in _journal(server, batch_id) if kind == "priority"] == ["priority"]
    server.request("POST", f"/v1/batches/{batch_id}/cancel")
    server.wait(batch_id)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("high", "invalid_type"),
        (True, "invalid_type"),
        (1.5, "invalid_type"),
        (101, "integer_above_max_value"),
        (-101, "integer_below_min_value"),
    ],
)
def test_a_priority_outside_its_range_is_refused(server: Server, value: Any, code: str) -> None:
    wanted = {
        "input_file_id": server.upload(chat_line("a")),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "priority": value,
    }
    status, _, answer = server.request("POST", "/v1/batches", wanted)
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, "priority", code)


def test_a_change_without_a_priority_is_refused(server: Server) -> None:
    batch_id = server.create([chat_line("a")])
    status, _, answer = _post(server, batch_id, {})
    assert (status, answer["error"]["code"]) == (400, "missing_required_parameter")
    server.wait(batch_id)
