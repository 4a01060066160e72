"""The queue of django-q2: a task is there when its transaction commits, and what waits for it is rung."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from django.db import connection, transaction

from vbatch_site import broker
from vbatch_site.broker import Broker

pytestmark = pytest.mark.django_db(transaction=True, serialized_rollback=True)

KEY = "a-cluster-of-this-test"


@pytest.fixture(autouse=True)
def _never_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "LOOK_SECONDS", 60.0)


@pytest.fixture
def seen() -> Iterator[list[str]]:
    """What a cluster gets from the queue, as long as the test runs."""
    found: list[str] = []
    stopping = threading.Event()

    def look() -> None:
        queue = Broker(KEY)
        try:
            while not stopping.is_set():
                for number, task in queue.dequeue() or ():
                    queue.acknowledge(number)
                    found.append(task)
        finally:
            connection.close()

    cluster = threading.Thread(target=look)
    cluster.start()
    yield found
    stopping.set()
    Broker(KEY).enqueue("the last")
    cluster.join(40)
    assert not cluster.is_alive()
    Broker(KEY).purge_queue()


def _until(condition: Callable[[], bool]) -> None:
    # Less than LOOK_SECONDS here.
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _listeners() -> list[int]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND state = 'idle' AND (query LIKE 'LISTEN%' OR query LIKE '%django_q_ormq%')"
        )
        return [pid for (pid,) in cursor.fetchall() if pid != connection.connection.info.backend_pid]


def test_a_task_rings_when_its_transaction_commits_and_not_when_it_is_rolled_back(seen: list[str]) -> None:
    queue = Broker(KEY)
    with transaction.atomic():
        queue.enqueue("never")
        transaction.set_rollback(True)
    with transaction.atomic():
        queue.enqueue("first")
        queue.enqueue("second")
    _until(lambda: sorted(seen) == ["first", "second"])
    Broker("another").enqueue("not ours")
    queue.enqueue("third")
    _until(lambda: sorted(seen) == ["first", "second", "third"])
    assert Broker("another").queue_size() == 1
    Broker("another").purge_queue()


def test_a_lost_connection_is_made_anew_and_hears_again(seen: list[str]) -> None:
    Broker(KEY).enqueue("first")
    _until(lambda: seen == ["first"] and len(_listeners()) == 1)
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", _listeners())
    _until(lambda: len(_listeners()) == 1)
    Broker(KEY).enqueue("second")
    _until(lambda: seen == ["first", "second"])
