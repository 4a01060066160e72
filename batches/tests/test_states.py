"""The state machine's map, and the one door through which a batch moves."""

from datetime import timedelta
from itertools import product

import pytest

from batches.models import Batch, BatchEvent, StaleTransition
from batches.states import SOURCES, TERMINAL, BatchStatus
from vbatch_site.models import Project


def _batch(status: BatchStatus = BatchStatus.VALIDATING) -> Batch:
    batch = Batch.begin(
        window=timedelta(hours=24),
        project=Project.default(),
        endpoint="/v1/chat/completions",
        input_file_id="file-x",
        completion_window="24h",
    )
    Batch.objects.filter(pk=batch.pk).update(**{"status": status})
    batch.refresh_from_db()
    return batch


def test_nothing_leaves_a_terminal_state() -> None:
    assert not [to for to, sources in SOURCES.items() if sources & TERMINAL]


@pytest.mark.django_db
@pytest.mark.parametrize(("before", "after"), list(product(BatchStatus, BatchStatus)))
def test_a_move_follows_the_map_and_writes_an_event_or_changes_nothing(before: BatchStatus, after: BatchStatus) -> None:
    batch = _batch(before)
    events = BatchEvent.objects.filter(batch=batch).count()
    if before in SOURCES[after]:
        batch.move(after)
        batch.refresh_from_db()
        assert batch.status == after
        assert getattr(batch, f"{after}_at") is not None
        assert BatchEvent.objects.filter(batch=batch).count() == events + 1
    else:
        with pytest.raises(StaleTransition):
            batch.move(after)
        batch.refresh_from_db()
        assert batch.status == before
        assert BatchEvent.objects.filter(batch=batch).count() == events


@pytest.mark.django_db
def test_of_two_that_move_a_batch_one_wins() -> None:
    batch = _batch(BatchStatus.IN_PROGRESS)
    other = Batch.objects.get(pk=batch.pk)
    batch.move(BatchStatus.FINALIZING)
    with pytest.raises(StaleTransition):
        other.move(BatchStatus.CANCELLING)
