"""Leases: who may write results, and what happens to those that may not."""

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from django.db import close_old_connections, connection
from django.utils import timezone

from batches import leases
from batches.finalize import finalize
from batches.locks import batch_lock
from batches.models import Batch, Provenance, Result, Shard
from batches.outcome import Outcome
from batches.states import BatchStatus, ShardState
from batches.tests.rows import MODEL, new_batch
from files import storage
from files.models import File

pytestmark = pytest.mark.django_db


def _batch(lines: int = 6, shard_lines: int = 3) -> Batch:
    batch = new_batch(lines, shard_lines)
    batch.move(BatchStatus.IN_PROGRESS, total=lines, model=MODEL)
    return batch


def _result(lease: leases.Lease, line: int, status: int = 200) -> tuple[leases.Lease, Outcome]:
    return lease, Outcome(lease.batch_id, line, str(line), status_code=status, body=b"{}", output_tokens=2)


def _claim(batch: Batch, holder: str = "a") -> leases.Lease:
    lease = leases.claim(batch.pk, MODEL, holder)
    assert lease is not None
    return lease


def _run_out(lease: leases.Lease) -> None:
    Shard.objects.filter(pk=lease.shard_id).update(lease_expires_at=timezone.now() - timedelta(seconds=1))


def test_a_claim_takes_each_shard_once() -> None:
    batch = _batch()
    first, second = _claim(batch, "a"), _claim(batch, "b")
    assert [line.number for line in (*first.lines, *second.lines)] == [1, 2, 3, 4, 5, 6]
    assert leases.claim(batch.pk, MODEL, "c") is None


def test_a_commit_writes_results_and_counters_together() -> None:
    batch = _batch()
    lease = _claim(batch)
    leases.commit([_result(lease, 1), _result(lease, 2, status=400)])
    batch.refresh_from_db()
    assert (batch.completed, batch.failed, batch.output_tokens) == (1, 1, 2)
    assert Result.objects.filter(batch=batch).count() == 2


def test_a_worker_that_lost_its_lease_writes_nothing() -> None:
    batch = _batch()
    lost = _claim(batch, "slow")
    _run_out(lost)
    taken = _claim(batch, "fast")
    assert taken.shard_id == lost.shard_id
    assert leases.commit([_result(lost, 1)]) == set()
    assert leases.renew([lost]) == (set(), set())
    leases.release([lost])
    batch.refresh_from_db()
    assert batch.completed == 0
    assert not Result.objects.filter(batch=batch).exists()
    assert leases.commit([_result(taken, 1)]) == {taken.shard_id}


def test_a_second_holder_runs_only_lines_without_a_result() -> None:
    batch = _batch()
    first = _claim(batch)
    leases.commit([_result(first, 2)])
    _run_out(first)
    assert [line.number for line in _claim(batch, "b").lines] == [1, 3]


def test_the_last_result_ends_the_batch_and_rings_for_its_files() -> None:
    from django_q.models import OrmQ

    batch = _batch()
    for _ in range(2):
        lease = _claim(batch)
        leases.commit([_result(lease, line.number) for line in lease.lines])
    batch.refresh_from_db()
    assert batch.status == BatchStatus.FINALIZING
    assert any("finalize" in row.func() for row in OrmQ.objects.filter(key="default"))


def test_a_cancelled_batch_is_no_longer_wanted_but_keeps_what_is_finished() -> None:
    batch = _batch()
    lease = _claim(batch)
    batch.move(BatchStatus.CANCELLING)
    assert leases.renew([lease]) == (set(), set())
    assert not leases.close_shards(batch.pk)  # a live lease holds the files up
    leases.commit([_result(lease, 1)])
    leases.release([lease])
    assert leases.close_shards(batch.pk)
    assert set(Shard.objects.values_list("state", flat=True)) == {ShardState.CLOSED.value}
    assert leases.commit([_result(lease, 2)]) == set()
    assert Result.objects.filter(batch=batch).count() == 1


def test_a_paused_batch_is_not_given_out_and_its_leases_are_told_so() -> None:
    batch = _batch()
    lease = _claim(batch)
    Batch.objects.filter(pk=batch.pk).update(paused_at=timezone.now())
    assert leases.waiting() == []
    assert leases.claim(batch.pk, MODEL, "b") is None
    assert leases.renew([lease]) == (set(), {lease.shard_id})
    # What was in flight counts.
    assert leases.commit([_result(lease, 1)]) == {lease.shard_id}
    leases.release([lease])
    Batch.objects.filter(pk=batch.pk).update(paused_at=None)
    (waiting,) = leases.waiting()
    assert waiting.lines == 5


def test_work_that_waits_carries_its_priority() -> None:
    batch = _batch()
    Batch.objects.filter(pk=batch.pk).update(priority=-7)
    assert [waiting.priority for waiting in leases.waiting()] == [-7]


def test_a_batch_whose_input_is_lost_ends_with_the_answers_that_it_has() -> None:
    # The rows name a file that was never stored.
    batch = _batch(3)
    lease = _claim(batch)
    leases.commit([_result(lease, 2)])
    leases.abort(batch.pk, "input_file_lost", "The input file can't be read.")
    leases.release([lease])
    assert finalize(batch.pk)
    batch.refresh_from_db()
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.COMPLETED, 1, 2)
    with storage.opened(File.objects.get(pk=batch.error_file_id).path) as stream:
        lines = [json.loads(line) for line in stream]
    assert [(line["custom_id"], line["error"]["code"], line["error"]["line"]) for line in lines] == [
        (None, "input_file_lost", 1),
        (None, "input_file_lost", 3),
    ]


def _mixed() -> tuple[Batch, leases.Lease]:
    """Return a batch of lines 1 to 3 of one model, of which 2 has run, and 4 to 6 of another that was given up."""
    batch = _batch()
    Shard.objects.filter(batch=batch, index=1).update(model="other")
    Batch.objects.filter(pk=batch.pk).update(model=None)
    lease = _claim(batch)
    leases.commit([_result(lease, 2)])
    leases.abort_model(batch.pk, "other", "model_load_failed", "No memory.")
    batch.refresh_from_db()
    assert batch.status == BatchStatus.IN_PROGRESS
    return batch, lease


def _left(batch: Batch) -> dict[int, str]:
    """Write the files; return the codes of the lines that never ran."""
    assert finalize(batch.pk)
    batch.refresh_from_db()
    with storage.opened(File.objects.get(pk=batch.error_file_id).path) as stream:
        errors = [json.loads(line)["error"] for line in stream]
    return {error["line"]: error["code"] for error in errors}


GIVEN_UP = dict.fromkeys((4, 5, 6), "model_load_failed")


@pytest.mark.parametrize(
    ("end", "status", "code"),
    [
        (lambda batch: batch.move(BatchStatus.FINALIZING), BatchStatus.EXPIRED, "batch_expired"),
        (lambda batch: batch.move(BatchStatus.CANCELLING), BatchStatus.CANCELLED, "batch_cancelled"),
    ],
    ids=["expires", "is cancelled"],
)
def test_lines_of_a_model_that_was_given_up_failed_however_the_batch_ends(
    end: Callable[[Batch], None], status: BatchStatus, code: str
) -> None:
    batch, lease = _mixed()
    end(batch)
    leases.release([lease])
    assert _left(batch) == {1: code, 3: code} | GIVEN_UP
    assert (batch.status, batch.completed, batch.failed) == (status, 1, 3)
    # The shards are gone.
    assert batch.why_not() == ("model_load_failed", "other: No memory.")


def test_a_batch_whose_other_models_finish_is_completed() -> None:
    batch, lease = _mixed()
    leases.commit([_result(lease, 1), _result(lease, 3)])
    assert _left(batch) == GIVEN_UP
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.COMPLETED, 3, 3)
    assert batch.why_not() == ("model_load_failed", "other: No memory.")


def test_a_batch_that_is_given_up_after_one_of_its_models_says_why_of_each_line() -> None:
    batch, lease = _mixed()
    leases.abort(batch.pk, "engine_unavailable", "It keeps dying.")
    leases.release([lease])
    assert _left(batch) == dict.fromkeys((1, 3), "engine_unavailable") | GIVEN_UP
    assert (batch.status, batch.completed, batch.failed) == (BatchStatus.COMPLETED, 1, 5)
    assert batch.why_not() == ("engine_unavailable", "It keeps dying.")


def test_lines_that_were_cancelled_before_their_model_was_given_up_are_cancelled() -> None:
    batch = _batch()
    batch.move(BatchStatus.CANCELLING)
    leases.abort_model(batch.pk, MODEL, "model_load_failed", "No memory.")
    assert set(_left(batch).values()) == {"batch_cancelled"}
    assert (batch.status, batch.failed, batch.abort_code) == (BatchStatus.CANCELLED, 0, "")


def test_what_answers_is_not_noted_with_a_batch_that_was_deleted_meanwhile() -> None:
    batch = _batch()
    Provenance.objects.create(pk="engine", facts={})
    leases.note_provenance([("batch_gone", "engine"), (batch.pk, "engine")])
    leases.note_provenance([(batch.pk, "engine")])
    # As at a commit.
    connection.check_constraints()
    assert [row.pk for row in batch.provenance.all()] == ["engine"]


def test_a_lock_outlives_the_age_at_which_connections_are_given_up() -> None:
    def hold() -> int:
        try:
            connection.ensure_connection()
            connection.close_at = time.monotonic()
            with batch_lock("an old connection's") as mine:
                assert mine
                close_old_connections()
                with connection.cursor() as cursor:
                    mine_still = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
                    cursor.execute(mine_still)
                    return int(cursor.fetchone()[0])
        finally:
            connection.close()

    # A thread has a connection of its own, without the transaction of this test.
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(hold).result() == 1
