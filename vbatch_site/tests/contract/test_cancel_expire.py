"""Items 84 to 89: a batch that ends before its work is done."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from vbatch_site.tests.contract.forms import assert_refused
from vbatch_site.tests.servers import Server, chat_line, wait_until

pytestmark = pytest.mark.slow

EXPIRED = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
QUICK, STUCK = 5, 4


def _lines() -> list[str]:
    quick = [chat_line(f"quick-{i}") for i in range(QUICK - 1)]
    stuck = [chat_line(f"stuck-{i}", "[[sim:hang]]") for i in range(STUCK)]
    return [*quick, chat_line("refused", "[[sim:400]]"), *stuck]


def _cancel(server: Server, batch_id: str) -> tuple[int, dict[str, str], Any]:
    return server.request("POST", f"/v1/batches/{batch_id}/cancel")


def _half_done(server: Server, batch_id: str) -> dict[str, Any]:
    """Return the batch once all lines that can end have ended."""

    def done() -> dict[str, Any] | None:
        batch = server.batch(batch_id)
        counts = batch["request_counts"]
        return batch if counts["completed"] + counts["failed"] == QUICK else None

    return dict(wait_until(done))


def _assert_partial(server: Server, batch: dict[str, Any], code: str) -> None:
    output, errors = server.lines(batch)
    assert {line["custom_id"] for line in output} == {f"quick-{i}" for i in range(QUICK - 1)}
    assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in output)
    never_ran = [line for line in errors if line["response"] is None]
    assert {line["custom_id"] for line in never_ran} == {f"stuck-{i}" for i in range(STUCK)}
    for line in never_ran:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert re.fullmatch("batch_req_[0-9a-f]{32}", line["id"])
        assert set(line["error"]) == {"code", "message"}
        assert line["error"]["code"] == code
        assert line["error"]["message"]
    assert [line["custom_id"] for line in errors if line["response"] is not None] == ["refused"]


@pytest.fixture(scope="module")
def cancelled(sim_server: Server) -> tuple[dict[str, Any], dict[str, Any]]:
    """A batch as the cancel call answered it, and at its end."""
    batch_id = sim_server.create(_lines())
    _half_done(sim_server, batch_id)
    status, _, answer = _cancel(sim_server, batch_id)
    assert status == 200
    return answer, sim_server.wait(batch_id)


def test_item_84_a_cancelled_batch_keeps_what_was_finished(
    sim_server: Server, cancelled: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    answer, batch = cancelled
    assert answer["status"] == "cancelling"
    assert answer["cancelling_at"] >= answer["in_progress_at"]
    assert (answer["cancelled_at"], answer["output_file_id"]) == (None, None)
    assert batch["status"] == "cancelled"
    assert batch["cancelled_at"] >= batch["cancelling_at"] == answer["cancelling_at"]
    assert batch["completed_at"] is batch["expired_at"] is None
    _assert_partial(sim_server, batch, "batch_cancelled")
    assert batch["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("wait", [0, 0.1, 0.3])
def test_item_85_cancel_right_after_create_works(sim_server: Server, wait: float) -> None:
    lines = [chat_line(str(i), "[[sim:hang]]") for i in range(3)]
    batch_id = sim_server.create(lines)
    time.sleep(wait)
    status, _, answer = _cancel(sim_server, batch_id)
    assert (status, answer["status"] in ("cancelling", "cancelled")) == (200, True)
    batch = sim_server.wait(batch_id)
    assert batch["status"] == "cancelled"
    assert batch["output_file_id"] is None
    # Cancelled before it was validated, a batch has no lines; afterwards it has all of them in its error file.
    assert len(sim_server.content(batch["error_file_id"])) == batch["request_counts"]["total"]


def test_item_86_lines_that_never_ran_are_not_counted_as_failed(
    cancelled: tuple[dict[str, Any], dict[str, Any]], expired: dict[str, Any]
) -> None:
    wanted = {"total": QUICK + STUCK, "completed": QUICK - 1, "failed": 1}
    assert cancelled[1]["request_counts"] == wanted
    assert expired["request_counts"] == wanted


def test_item_87_cancel_of_a_cancelled_batch_changes_nothing(
    sim_server: Server, cancelled: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    status, _, answer = _cancel(sim_server, cancelled[1]["id"])
    assert (status, answer) == (200, cancelled[1])


@contextmanager
def _ended(server: Server, status: str) -> Iterator[str]:
    line = chat_line("1") if status == "completed" else "not json\n"
    batch_id = server.create(chat_line("0") + line)
    assert server.wait(batch_id)["status"] == status
    yield batch_id


@pytest.mark.parametrize("status", ["completed", "failed"])
def test_items_87_and_88_cancel_of_an_ended_batch_is_409_and_not_to_be_repeated(
    sim_server: Server, status: str
) -> None:
    with _ended(sim_server, status) as batch_id:
        before = sim_server.batch(batch_id)
        answer = _cancel(sim_server, batch_id)
        assert_refused(answer, 409, f"Cannot cancel a batch with status '{status}'.", param=None, code=None)
        assert answer[1]["x-should-retry"] == "false"
        assert sim_server.batch(batch_id) == before


@pytest.fixture(scope="module")
def in_time(short_server: Server) -> dict[str, Any]:
    """A batch that was completed before its window passed."""
    return short_server.wait(short_server.create([chat_line("1")], completion_window="60s"))


@pytest.fixture(scope="module")
def expired(short_server: Server, in_time: dict[str, Any]) -> dict[str, Any]:
    """A batch whose window passed while some of its lines were stuck; that of the one in time passed with it."""
    batch_id = short_server.create(_lines(), completion_window="60s")
    batch = _half_done(short_server, batch_id)
    assert (batch["status"], batch["expires_at"]) == ("in_progress", batch["created_at"] + 60)
    # Nobody waits for the minute, and no machine is too slow for it.
    passed = "UPDATE batches_batch SET expires_at = now() WHERE id IN (%s, %s)"
    short_server.execute(passed, batch_id, in_time["id"])
    return short_server.wait(batch_id)


def test_item_89_a_batch_whose_window_passed_keeps_what_was_finished(
    short_server: Server, expired: dict[str, Any]
) -> None:
    assert expired["status"] == "expired"
    assert expired["expired_at"] >= expired["expires_at"]
    assert expired["completed_at"] is expired["cancelled_at"] is None
    _assert_partial(short_server, expired, "batch_expired")
    _, errors = short_server.lines(expired)
    assert [line["error"] for line in errors if line["error"]] == [EXPIRED] * STUCK
    answer = _cancel(short_server, expired["id"])
    assert_refused(answer, 409, "Cannot cancel a batch with status 'expired'.")


def test_item_89_a_batch_that_ends_in_time_does_not_expire(
    short_server: Server, in_time: dict[str, Any], expired: dict[str, Any]
) -> None:
    assert in_time["status"] == "completed"
    # Whatever found the window of the other one passed has seen this one's too.
    later = short_server.batch(in_time["id"])
    assert later["expires_at"] <= expired["expired_at"]
    assert later == {**in_time, "expires_at": later["expires_at"]}
