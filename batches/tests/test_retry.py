"""Lines that are run again: in the same batch while it runs, in a new one when it has ended."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db.models import Sum
from django.utils import timezone

from batches import creation, leases, retrying
from batches.finalize import finalize
from batches.models import Batch, BatchEvent, Result, Shard
from batches.outcome import Outcome
from batches.planning import SHARD_LINES, in_file_order
from batches.states import BatchStatus, EventKind, ShardState
from batches.tests.rows import MODEL, new_batch
from batches.validate import validate
from files import uploads
from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError
from vbatch_site.openai.idempotency import Claim
from vbatch_site.tests import servers
from vbatch_site.tests.servers import Server, chat_line, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of this module's own."""
    with Server(tmp_path_factory.mktemp("retry") / "home") as server:
        yield server


def _retry(server: Server, batch_id: str, body: Any = None) -> tuple[int, Any]:
    status, _, answer = server.request("POST", f"/v1/batches/{batch_id}/retry", body or {})
    return status, answer


def _ids(lines: list[dict[str, Any]]) -> list[str]:
    return sorted(line["custom_id"] for line in lines)


@pytest.mark.django_db
def test_failed_lines_of_a_running_batch_move_to_a_shard_of_their_own_and_every_line_stays_planned_once() -> None:
    batch = new_batch(lines=9, shard_lines=3)
    batch.move(BatchStatus.IN_PROGRESS, total=9, model=MODEL)
    first, second = (leases.claim(batch.pk, MODEL, holder) for holder in "ab")
    assert first and second

    def outcome(number: int, status: int) -> Outcome:
        return Outcome(batch.pk, number, f"c{number}", status, "", b"{}", output_tokens=1)

    leases.commit([(first, outcome(line.number, 500 if line.number == 2 else 200)) for line in first.lines])
    leases.commit([(second, outcome(4, 400))])
    retrying.retry(batch, None, by="a test")
    assert (batch.completed, batch.failed, batch.total) == (2, 0, 9)
    assert [line.number for line in in_file_order(Shard.objects.values_list("lines", flat=True))] == list(range(1, 10))
    assert Shard.objects.aggregate(count=Sum("count"), done=Sum("done")) == {"count": 9, "done": 2}
    # The lease that is still out goes on with what it has, and writes no line twice.
    assert leases.commit([(second, outcome(5, 200)), (second, outcome(6, 200))]) == {second.shard_id}
    assert Shard.objects.get(pk=second.shard_id).state == ShardState.DONE
    numbers: list[int] = []
    while lease := leases.claim(batch.pk, MODEL, "c"):
        numbers += [line.number for line in lease.lines]
        leases.commit([(lease, outcome(line.number, 200)) for line in lease.lines])
    assert sorted(numbers) == [2, 4, 7, 8, 9]
    batch.refresh_from_db()
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.FINALIZING, 9, 0)
    assert sorted(Result.objects.values_list("line", flat=True)) == list(range(1, 10))


@pytest.mark.django_db
def test_a_lost_lease_does_not_bring_a_retried_line_back_twice() -> None:
    batch = new_batch(lines=3, shard_lines=3)
    batch.move(BatchStatus.IN_PROGRESS, total=3, model=MODEL)
    lease = leases.claim(batch.pk, MODEL, "a")
    assert lease
    leases.commit([(lease, Outcome(batch.pk, 1, "c1", 500, "", b"{}"))])
    retrying.retry(batch, ["c1"], by="a test")
    Shard.objects.filter(pk=lease.shard_id).update(lease_expires_at=timezone.now())
    claimed = [leases.claim(batch.pk, MODEL, "b") for _ in range(2)]
    assert sorted(line.number for found in claimed if found for line in found.lines) == [1, 2, 3]


@pytest.mark.django_db
def test_a_running_batch_repeats_no_line_that_has_not_failed() -> None:
    batch = new_batch(lines=3, shard_lines=3)
    batch.move(BatchStatus.IN_PROGRESS, total=3, model=MODEL)
    with pytest.raises(ApiError, match="no line has failed"):
        retrying.retry(batch, None, by="a test")
    with pytest.raises(ApiError, match="'c1' is no line that failed"):
        retrying.retry(batch, ["c1"], by="a test")


def _failing(lines: int, failed: int) -> Batch:
    """Return a running batch whose first lines have failed."""
    batch = new_batch(lines=lines, shard_lines=lines)
    batch.move(BatchStatus.IN_PROGRESS, total=lines, model=MODEL)
    while lease := leases.claim(batch.pk, MODEL, "a"):
        numbers = [line.number for line in lease.lines if line.number <= failed]
        leases.commit([(lease, Outcome(batch.pk, n, f"c{n}", 500, "", b"{}")) for n in numbers])
    return batch


@pytest.mark.django_db
def test_what_runs_again_is_cut_into_shards_that_workers_can_share() -> None:
    batch = _failing(2 * SHARD_LINES + 2, 2 * SHARD_LINES + 1)
    retrying.retry(batch, None, by="a test")
    again = Shard.objects.filter(batch=batch, state=ShardState.PENDING).order_by("index")
    assert [shard.count for shard in again] == [SHARD_LINES, SHARD_LINES, 1]


@pytest.mark.django_db
def test_a_retry_of_a_running_batch_under_a_key_is_done_once() -> None:
    batch = _failing(3, 1)
    key = Claim(batch.project, "once", "the request")
    assert retrying.retry(batch, None, "a test", key) == retrying.retry(batch, None, "a test", key) == batch
    assert BatchEvent.objects.filter(batch=batch, kind=EventKind.RETRY).count() == 1
    with pytest.raises(ApiError, match="used before"):
        retrying.retry(batch, None, "a test", Claim(batch.project, "once", "another request"))


@pytest.mark.django_db
def test_a_batch_that_was_cancelled_before_it_was_validated_can_be_run_after_all() -> None:
    batch = new_batch()
    batch.move(BatchStatus.CANCELLING)
    batch.move(BatchStatus.CANCELLED)
    assert retrying.retry(batch, None, "a test").continue_from == batch.pk


@pytest.mark.django_db
def test_an_error_that_was_taken_over_runs_again_on_the_model_of_its_line() -> None:
    text = "".join(chat_line(name) for name in "ab")
    file = uploads.create_file(Project.default(), SimpleUploadedFile("f.jsonl", text.encode()), "batch", None)
    wanted = {"input_file_id": file.pk, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    first = creation.create(Project.default(), wanted)
    validate(first.pk)
    lease = leases.claim(first.pk, servers.MODEL, "a")
    assert lease
    leases.commit([(lease, Outcome(first.pk, n, name, 400, "r", b"{}")) for n, name in ((1, "a"), (2, "b"))])
    finalize(first.pk)
    first.refresh_from_db()
    second = retrying.retry(first, ["a"], "a test")
    validate(second.pk)
    second.refresh_from_db()
    assert (second.total, second.failed) == (2, 1)
    retrying.retry(second, ["b"], "a test")
    # A model of any other name would be waited for, and engines put away for it, until the window ends.
    (work,) = leases.waiting()
    assert (work.model, work.lines) == (servers.MODEL, 2)


def test_lines_that_failed_in_a_running_batch_are_run_again_in_it(server: Server) -> None:
    # One line holds the batch open, so that it still runs whenever the failure is seen.
    lines = [chat_line("good"), chat_line("bad", "[[sim:400]]"), chat_line("held", "[[sim:hang]]")]
    batch_id = server.create(lines)

    def has_failed() -> bool:
        return bool(server.batch(batch_id)["request_counts"] == {"total": 3, "completed": 1, "failed": 1})

    wait_until(has_failed)
    status, answer = _retry(server, batch_id, {"lines": ["bad"]})
    assert (status, answer["id"]) == (200, batch_id)
    wait_until(lambda: server.requests_seen().count("[[sim:400]]") == 2)
    wait_until(has_failed)
    server.request("POST", f"/v1/batches/{batch_id}/cancel")
    batch = server.wait(batch_id)
    assert batch["request_counts"] == {"total": 3, "completed": 1, "failed": 1}
    output, errors = server.lines(batch)
    assert (_ids(output), _ids(errors)) == (["good"], ["bad", "held"])
    assert [line["response"]["status_code"] for line in errors if line["custom_id"] == "bad"] == [400]
    kinds = [kind for (kind,) in server.query("SELECT kind FROM batches_batchevent WHERE batch_id = %s", batch_id)]
    assert kinds.count("retry") == 1


def test_an_ended_batch_is_continued_by_one_that_runs_what_failed(server: Server) -> None:
    lines = [chat_line(f"kept{i}", f"kept {i}") for i in range(5)] + [chat_line("bad", "[[sim:400]] again")]
    first = server.wait(server.create(lines, metadata={"night": "1"}, priority=3))
    status, answer = _retry(server, first["id"])
    assert status == 200
    assert answer["id"] != first["id"]
    assert (answer["metadata"], answer["vbatch"]["priority"]) == ({"night": "1"}, 3)
    assert answer["vbatch"]["continue_from"] == first["id"]
    batch = server.wait(answer["id"])
    assert batch["request_counts"] == {"total": 6, "completed": 5, "failed": 1}
    seen = server.requests_seen()
    assert (seen.count("kept 0"), seen.count("[[sim:400]] again")) == (1, 2)
    assert batch["vbatch"]["provenance"] == first["vbatch"]["provenance"]
    # The first one is as it was.
    assert server.batch(first["id"]) == first


def test_chosen_lines_of_an_ended_batch_run_again_and_the_others_keep_what_they_got(server: Server) -> None:
    lines = [chat_line("a", "choice a"), chat_line("b", "choice b"), *(chat_line(c, f"[[sim:400]] {c}") for c in "cd")]
    first = server.wait(server.create(lines))
    status, answer = _retry(server, first["id"], {"lines": ["a", "c"]})
    assert status == 200
    batch = server.wait(answer["id"])
    assert batch["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    output, errors = server.lines(batch)
    assert (_ids(output), _ids(errors)) == (["a", "b"], ["c", "d"])
    seen = server.requests_seen()
    counts = [seen.count(text) for text in ("choice a", "choice b", "[[sim:400]] c", "[[sim:400]] d")]
    assert counts == [2, 1, 2, 1]
    before = {line["custom_id"]: line["response"] for line in server.lines(first)[1]}
    assert {line["custom_id"]: line["response"] for line in errors if line["custom_id"] == "d"}["d"] == before["d"]


def test_a_chosen_line_that_is_not_in_the_file_fails_the_new_batch(server: Server) -> None:
    first = server.wait(server.create([chat_line("a")]))
    batch = server.wait(_retry(server, first["id"], {"lines": ["nobody"]})[1]["id"])
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] == "line_not_found"


@pytest.mark.parametrize(
    ("lines", "code"), [("a", "invalid_type"), ([1], "invalid_type"), ([], "invalid_value"), (["\0"], "invalid_value")]
)
def test_lines_that_cannot_be_custom_ids_are_refused(server: Server, lines: Any, code: str) -> None:
    first = server.wait(server.create([chat_line("a")]))
    status, answer = _retry(server, first["id"], json.loads(json.dumps({"lines": lines})))
    assert (status, answer["error"]["code"]) == (400, code)


def test_there_is_nothing_to_retry_where_nothing_failed_or_ran(server: Server) -> None:
    done = server.wait(server.create([chat_line("a")]))
    status, answer = _retry(server, done["id"])
    assert (status, answer["error"]["code"]) == (400, "nothing_to_retry")
    failed = server.wait(server.create([chat_line("a"), "no json\n"]))
    assert _retry(server, failed["id"])[0] == 409


def test_a_retry_under_a_key_starts_one_batch_however_often_it_is_sent(server: Server) -> None:
    first = server.wait(server.create([chat_line("bad", "[[sim:400]]")]))
    path, key = f"/v1/batches/{first['id']}/retry", {"Idempotency-Key": "once"}
    ids = {server.request("POST", path, {}, headers=key)[2]["id"] for _ in range(2)}
    assert len(ids) == 1
    server.wait(ids.pop())


def test_the_engine_that_answered_is_shown_on_the_batch_and_says_that_it_is_simulated(server: Server) -> None:
    batch = server.wait(server.create([chat_line("a")]))
    (facts,) = batch["vbatch"]["provenance"]
    assert (facts["engine"], facts["engine_version"], facts["gpu"]) == ("sim", "0.32.0+sim", None)
    assert facts["model"] == batch["model"]
    service = "SELECT facts->>'engine' FROM workers_service s JOIN batches_provenance p ON p.id = s.provenance_id"
    assert ("sim",) in server.query(service)
