"""Times that were written by another clock, or before the clock was set back, hold up nothing and delete nothing."""

from datetime import timedelta

import pytest
from django.utils import timezone
from django_q.models import Schedule

from batches import leases, sweep
from batches.models import Batch
from batches.outcome import Outcome
from batches.standing import standings
from batches.states import BatchStatus
from batches.tests.rows import MODEL, new_batch
from files import repair
from files.models import File
from vbatch_site import clock

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def test_the_time_is_the_database_s_and_goes_on_between_two_questions() -> None:
    before = timezone.now()
    asked = clock.ask()
    known = clock.now()
    assert before - timedelta(seconds=1) < asked <= known < asked + timedelta(seconds=5)


def test_the_schedule_of_the_sweep_does_not_wait_until_the_old_time_comes_again() -> None:
    schedule = Schedule.objects.get(func="batches.tasks.sweep")
    for ahead, is_late in ((timedelta(minutes=1), False), (HOUR, True)):
        due = clock.ask() + ahead
        Schedule.objects.filter(pk=schedule.pk).update(next_run=due)
        sweep.sweep()
        schedule.refresh_from_db()
        assert (schedule.next_run < due) == is_late


def test_rates_and_the_end_count_from_when_the_clock_was_set_back() -> None:
    batch = new_batch(200, 100)
    batch.move(BatchStatus.IN_PROGRESS, total=200, model=MODEL)
    # It did most of its lines in the hour that is to come again.
    Batch.objects.filter(pk=batch.pk).update(in_progress_at=timezone.now() + HOUR, completed=100_000, total=100_200)
    lease = leases.claim(batch.pk, MODEL, "a")
    assert lease
    leases.commit([(lease, Outcome(batch.pk, line.number, "c", 200, "", b"{}")) for line in lease.lines[:40]])
    batch.refresh_from_db()
    now = timezone.now()
    found = standings([batch], now)[batch.pk]
    assert found.rates is not None
    assert 0 < found.rates.since_start <= 40
    assert found.eta is not None
    assert found.eta.latest > now.timestamp()


def test_a_file_that_was_deleted_before_the_clock_was_set_back_is_not_taken_for_one_that_never_came() -> None:
    now = timezone.now()
    batch = new_batch()
    files = File.objects.filter(pk=batch.input_file_id)
    files.update(created_at=now - 3 * HOUR, deleted_at=now + HOUR)
    list(repair.leftovers())
    assert files.exists()
    files.update(deleted_at=now + 21 * HOUR)
    list(repair.leftovers())
    assert not files.exists()
