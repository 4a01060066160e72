"""What the batch object and the queue say of how a batch stands."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from batches import leases
from batches.models import Batch, Sample
from batches.outcome import Outcome
from batches.serializers import batch_dicts
from batches.standing import positions, queue
from batches.states import BatchStatus
from batches.tests.rows import MODEL, new_batch
from vbatch_site.models import ApiKey, Project
from vbatch_site.tests.servers import Server, chat_line, wait_until


def _running(lines: int = 100, **fields: Any) -> Batch:
    batch = new_batch(lines, 50, **fields)
    batch.move(BatchStatus.IN_PROGRESS, total=lines, model=MODEL)
    return batch


@pytest.mark.django_db
def test_batches_wait_in_the_order_of_priority_and_age_behind_those_that_run() -> None:
    old, new, urgent, paused, runs = (_running(priority=priority) for priority in (0, 0, 5, 0, -9))
    Batch.objects.filter(pk=paused.pk).update(paused_at=timezone.now())
    assert leases.claim(runs.pk, MODEL, "a")
    places = positions(queue(timezone.now()))
    assert places == {runs.pk: 0, urgent.pk: 1, old.pk: 2, new.pk: 3}
    shown = {row["id"]: row["vbatch"]["queue_position"] for row in batch_dicts([old, paused, runs])}
    assert shown == {old.pk: 2, paused.pk: None, runs.pk: 0}


@pytest.mark.django_db
def test_what_a_commit_wrote_is_counted_in_its_stretch_of_time_exactly() -> None:
    batch = _running()
    lease = leases.claim(batch.pk, MODEL, "a")
    assert lease
    for part in (lease.lines[:20], lease.lines[20:40]):
        outcomes = [Outcome(batch.pk, line.number, "c", 200, "", b"{}", "", "", 10, 4, 3, 0, 50) for line in part[1:]]
        failed = Outcome(batch.pk, part[0].number, "c", 400, "", b"{}")
        leases.commit([(lease, outcome) for outcome in [*outcomes, failed]])
    rows = Sample.objects.filter(batch=batch)
    assert {row.model for row in rows} == {MODEL}
    for name, total in {
        "lines": 40,
        "failed": 2,
        "input_tokens": 380,
        "cached_tokens": 152,
        "output_tokens": 114,
    }.items():
        assert sum(getattr(row, name) for row in rows) == total
    batch.refresh_from_db()
    (shown,) = batch_dicts([batch])
    assert shown["vbatch"]["prefix_cache_hit_rate"] == pytest.approx(0.4)


def _did(batch: Batch, stretches: int, lines: int) -> None:
    now = timezone.now()
    for i in range(1, stretches + 1):
        at = now - timedelta(seconds=10 * i)
        Sample.objects.create(
            batch=batch, model=MODEL, at=at, lines=lines, input_tokens=lines * 100, output_tokens=lines * 10
        )


@pytest.mark.django_db
def test_a_batch_collects_data_first_and_then_gets_a_range() -> None:
    batch = _running(1000)
    assert batch_dicts([batch])[0]["vbatch"]["eta_latest"] is None
    Batch.objects.filter(pk=batch.pk).update(in_progress_at=timezone.now() - timedelta(seconds=100), completed=500)
    _did(batch, 10, 50)
    batch.refresh_from_db()
    extra = batch_dicts([batch])[0]["vbatch"]
    assert extra["eta_earliest"] and extra["eta_latest"]
    # 500 lines at 5 a second.
    assert time.time() + 30 < extra["eta_earliest"] < time.time() + 100 < extra["eta_latest"] < time.time() + 250
    assert extra["lines_per_second"]
    assert extra["lines_per_second"]["since_start"] == pytest.approx(5, rel=0.1)


@pytest.mark.django_db
def test_a_batch_that_waits_is_judged_by_what_its_model_did_for_others() -> None:
    first, waits = _running(500), _running(500)
    _did(first, 10, 50)
    extra = batch_dicts([waits])[0]["vbatch"]
    assert extra["eta_earliest"] and extra["eta_latest"]
    assert extra["eta_earliest"] < extra["eta_latest"]


@pytest.mark.django_db
def test_the_queue_shows_of_other_projects_only_how_much_they_have() -> None:
    mine = _running(30)
    other = _running(70, project=Project.objects.create(name="other"))
    _, key = ApiKey.issue(Project.default(), "test")
    answer = Client(headers={"authorization": f"Bearer {key}"}).get("/v1/queue")
    body = answer.json()
    assert [row["batch_id"] for row in body["data"]] == [mine.pk]
    assert body["own"] == {"batches": 1, "running": 0, "lines": 30}
    assert body["others"] == {"batches": 1, "running": 0, "lines": 70}
    assert other.pk not in answer.content.decode()
    assert "other" not in answer.content.decode().replace("others", "")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose engine answers 40 lines a second."""
    with Server(tmp_path_factory.mktemp("standing") / "home", VBATCH_SIM_LINES_PER_SECOND="40") as server:
        yield server


def test_a_running_batch_shows_its_rate_and_a_range_that_holds_its_end(server: Server) -> None:
    # The rate is to be the engine's, and not that of its start.
    server.wait(server.create([chat_line("warm")]))
    batch_id = server.create(chat_line(f"l{i}", max_tokens=4) for i in range(800))

    def known() -> dict[str, object] | None:
        batch = server.batch(batch_id)
        return batch if batch["vbatch"]["eta_latest"] and batch["request_counts"]["completed"] > 300 else None

    batch = wait_until(known)
    extra = batch["vbatch"]
    assert extra["queue_position"] == 0
    assert 25 < extra["lines_per_second"]["last_minute"] < 60
    queued = server.request("GET", "/v1/queue")[2]
    assert batch_id in [row["batch_id"] for row in queued["data"]]
    batch = server.wait(batch_id)
    assert extra["eta_earliest"] <= batch["finalizing_at"] <= extra["eta_latest"]
    ended = batch["vbatch"]
    assert (ended["queue_position"], ended["eta_earliest"], ended["eta_latest"]) == (None, None, None)
    assert ended["lines_per_second"]["last_minute"] == 0
    assert 25 < ended["lines_per_second"]["since_start"] < 60
