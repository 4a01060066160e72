"""What the default cluster is rung for is done, though the database ends its session in the middle."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from django.db import connection

from batches import tasks
from batches.locks import lock_key
from batches.states import BatchStatus
from batches.tests.browsing import asked
from vbatch_site.tests.servers import chat_line

LINES = 10_000  # so many that the session is ended while they are read
# Both halves of the number under which a session lock is known.
HOLDERS = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND (classid::bigint << 32 | objid::bigint) = %s"


@contextmanager
def _its_session_ended_once(batch_id: str) -> Iterator[list[int]]:
    """Within the block, end the first session that holds the batch's lock; yield whose it was."""
    ended: list[int] = []
    looks, over = threading.Event(), threading.Event()

    def watch() -> None:
        with psycopg.connect(**connection.get_connection_params()) as other:
            looks.set()
            while not over.is_set() and not ended:
                for (pid,) in other.execute(HOLDERS, [lock_key(batch_id)]).fetchall():
                    other.execute("SELECT pg_terminate_backend(%s)", [pid])
                    ended.append(pid)
                other.commit()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        looks.wait()
        yield ended
    finally:
        over.set()
        thread.join()


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_a_batch_whose_task_lost_its_connection_does_not_wait_for_the_sweep() -> None:
    batch = asked("".join(chat_line(str(number)) for number in range(LINES)))
    with _its_session_ended_once(batch.pk) as ended:
        assert tasks.validate(batch.pk)
    assert len(ended) == 1
    batch.refresh_from_db()
    assert (batch.status, batch.total) == (BatchStatus.IN_PROGRESS, LINES)
    batch.move(BatchStatus.FINALIZING)
    with _its_session_ended_once(batch.pk) as ended:
        assert tasks.finalize(batch.pk)
    assert len(ended) == 1
    batch.refresh_from_db()
    assert batch.status == BatchStatus.EXPIRED
