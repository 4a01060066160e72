"""Deliveries on their way: real couriers, real rows, real receivers."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone
from django_q.models import OrmQ

from batches.models import Batch
from batches.states import BatchStatus
from batches.webhooks import deliveries, endpoints
from batches.webhooks.client import Answer
from batches.webhooks.courier import CourierThread
from batches.webhooks.events import draft
from batches.webhooks.models import DeliveryState, WebhookDelivery, WebhookEndpoint
from batches.webhooks.payload import EventType
from vbatch_site.models import Project
from vbatch_site.tests.receiver import Receiver
from vbatch_site.tests.servers import wait_until

pytestmark = pytest.mark.django_db(transaction=True, serialized_rollback=True)


@pytest.fixture(autouse=True)
def quick(settings: Any) -> None:
    """Deliver to this machine, with short waits, but for answers: a busy machine's may take a while."""
    settings.VBATCH_WEBHOOK_ALLOW_PRIVATE = True
    settings.VBATCH_WEBHOOK_TIMEOUT = 60.0
    settings.VBATCH_WEBHOOK_RETRY_SECONDS = 0.1
    settings.VBATCH_WEBHOOK_MAX_ATTEMPTS = 3


@contextmanager
def _couriers(count: int = 1) -> Iterator[list[CourierThread]]:
    threads = [CourierThread() for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.stop()


def _endpoint(url: str, project: Project | None = None) -> WebhookEndpoint:
    wanted = {"name": "test", "url": url, "event_types": ["batch.completed", "batch.failed"]}
    return endpoints.create(project or Project.default(), wanted)[0]


def _queue(endpoint: WebhookEndpoint, count: int = 1) -> list[WebhookDelivery]:
    now = timezone.now()
    made = [draft(endpoint, "evt_1", EventType.COMPLETED, b'{"a": 1}', now, batch_id="batch_1") for _ in range(count)]
    return WebhookDelivery.objects.bulk_create(made)


def _states(endpoint: WebhookEndpoint) -> dict[str, int]:
    return Counter(WebhookDelivery.objects.filter(endpoint=endpoint).values_list("state", flat=True))


def _batch() -> Batch:
    return Batch.begin(
        window=timedelta(hours=24),
        project=Project.default(),
        endpoint="/v1/chat/completions",
        input_file_id="file-x",
        completion_window="24h",
    )


def test_of_two_couriers_only_one_makes_each_attempt() -> None:
    with Receiver() as receiver:
        endpoint = _endpoint(receiver.url)
        _queue(endpoint, 150)
        with _couriers(2):
            wait_until(lambda: _states(endpoint) == {"delivered": 150})
        assert Counter(request.headers["webhook-id"] for request in receiver.received).most_common(1)[0][1] == 1
        assert len(receiver.received) == 150


def test_receivers_that_hang_hold_up_nobody_else() -> None:
    # The receivers end before the courier does, which need not wait for what hangs then.
    with _couriers() as (courier,), Receiver() as slow, Receiver(host="127.0.0.2") as good:
        slow.behaviours = [slow.hang]
        _queue(_endpoint(slow.url), 100)
        endpoint = _endpoint(good.url)
        courier.wake()  # as the doorbell does
        wait_until(lambda: len(slow.received) == deliveries.PER_HOST)
        _queue(endpoint)
        courier.wake()
        wait_until(lambda: _states(endpoint) == {"delivered": 1})
        assert len(slow.received) == deliveries.PER_HOST


def test_names_that_nobody_resolves_hold_up_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over = threading.Semaphore(0), threading.Event()

    def resolve(host: str, port: int, *args: Any, **more: Any) -> Any:
        if host != "good.example":
            asked.release()
            over.wait(120)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    with Receiver() as good:
        for i in range(8):
            _queue(_endpoint(f"http://dead-{i}.example/"), 10)
        endpoint = _endpoint(f"http://good.example:{good.port}/")
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with _couriers() as (courier,):
            try:
                for _ in range(8 * deliveries.PER_HOST):
                    assert asked.acquire(timeout=60)
                _queue(endpoint)
                courier.wake()
                wait_until(lambda: good.received)
            finally:
                over.set()


def test_a_delivery_whose_worker_died_is_made_by_another_under_the_same_id() -> None:
    with Receiver() as receiver:
        endpoint = _endpoint(receiver.url)
        (delivery,) = _queue(endpoint)
        (attempt,) = deliveries.claim(10, {})  # by a worker that is never heard of again
        assert deliveries.claim(10, {}) == []
        WebhookDelivery.objects.update(next_attempt_at=timezone.now())
        with _couriers():
            wait_until(lambda: _states(endpoint) == {"delivered": 1})
        assert [request.headers["webhook-id"] for request in receiver.received] == [delivery.pk]
        # The dead worker was only slow: what it has to say counts no more.
        deliveries.finish(attempt, Answer(500, 5, error="status 500"))
        delivery.refresh_from_db()
        assert (delivery.state, delivery.last_code, delivery.attempts) == ("delivered", 200, 2)
        endpoint.refresh_from_db()
        assert endpoint.consecutive_failures == 0


def test_the_end_of_a_batch_and_its_deliveries_are_one_transaction() -> None:
    endpoint = _endpoint("http://127.0.0.1:1/")
    other = _endpoint("http://127.0.0.1:1/", Project.objects.create(name="other"))
    deaf = endpoints.create(
        Project.default(), {"name": "n", "url": "http://127.0.0.1:1/", "event_types": ["batch.expired"]}
    )[0]
    batch = _batch()
    OrmQ.objects.all().delete()
    with pytest.raises(RuntimeError), _atomic():
        batch.move(BatchStatus.FAILED)
        raise RuntimeError
    assert not WebhookDelivery.objects.exists()
    assert not OrmQ.objects.exists()
    Batch.objects.get(pk=batch.pk).move(BatchStatus.FAILED)
    (delivery,) = WebhookDelivery.objects.all()
    assert (delivery.endpoint, delivery.event_type, delivery.state) == (endpoint, "batch.failed", "pending")
    assert OrmQ.objects.count() == 1
    assert not WebhookDelivery.objects.filter(endpoint__in=[other, deaf]).exists()


def _atomic() -> Any:
    from django.db import transaction

    return transaction.atomic()


def test_a_batch_that_nobody_listens_to_costs_two_queries_more(django_assert_max_num_queries: Any) -> None:
    batch = _batch()
    with django_assert_max_num_queries(7):  # savepoint included: update, event, count, batch, endpoints
        batch.move(BatchStatus.FAILED)
    assert not WebhookDelivery.objects.exists()


def _dead(receiver: Receiver) -> tuple[WebhookEndpoint, WebhookDelivery]:
    endpoint = _endpoint(receiver.url)
    (delivery,) = _queue(endpoint)
    with _couriers():
        wait_until(lambda: _states(endpoint) == {"exhausted": 1})
    delivery.refresh_from_db()
    return endpoint, delivery


def test_a_dead_letter_can_be_sent_again_under_its_id_and_gets_all_attempts_again() -> None:
    with Receiver(500, 500, 500, 500, 500, 200) as receiver:
        endpoint, delivery = _dead(receiver)
        assert (delivery.attempts, delivery.last_error, len(delivery.log)) == (3, "status 500", 3)
        endpoint.refresh_from_db()
        assert endpoint.consecutive_failures == 3
        assert deliveries.redeliver(delivery)
        with _couriers():
            wait_until(lambda: _states(endpoint) == {"delivered": 1})
        assert {request.headers["webhook-id"] for request in receiver.received} == {delivery.pk}
        delivery.refresh_from_db()
        assert (delivery.attempts, [entry["status"] for entry in delivery.log]) == (6, [500] * 5 + [200])
        endpoint.refresh_from_db()
        assert (endpoint.consecutive_failures, endpoint.failing_since) == (0, None)


def test_an_endpoint_that_took_nothing_for_72_hours_is_disabled_and_says_so() -> None:
    with Receiver(500) as receiver:
        endpoint = _endpoint(receiver.url)
        long_ago = timezone.now() - deliveries.DISABLE_AFTER
        WebhookEndpoint.objects.update(consecutive_failures=deliveries.DISABLE_FAILURES - 2, failing_since=long_ago)
        _queue(endpoint)
        WebhookDelivery.objects.bulk_create(
            [draft(endpoint, "evt_2", EventType.FAILED, b"{}", timezone.now() + timedelta(hours=1))]
        )
        assert deliveries.warnings() == []
        with _couriers():
            wait_until(lambda: WebhookEndpoint.objects.exclude(disabled_at=None).exists())
        assert len(receiver.received) == 2
        assert _states(endpoint) == {"exhausted": 2}
        (warning,) = deliveries.warnings(endpoint.project)
        assert endpoint.name in warning and "72 hours without a success; last: status 500" in warning
        assert deliveries.warnings(Project.objects.create(name="other")) == []
        # It hears of nothing, until it is enabled.
        delivery = WebhookDelivery.objects.filter(endpoint=endpoint).first()
        assert delivery is not None and not deliveries.redeliver(delivery)
        _batch().move(BatchStatus.FAILED)
        assert WebhookDelivery.objects.count() == 2
        deliveries.enable(endpoint)
        assert deliveries.redeliver(delivery) and deliveries.warnings() == []
        _batch().move(BatchStatus.FAILED)
        assert WebhookDelivery.objects.count() == 3


def test_what_a_crash_left_of_a_disabled_endpoint_is_not_sent() -> None:
    with Receiver() as receiver:
        endpoint = _endpoint(receiver.url)
        WebhookEndpoint.objects.update(disabled_at=timezone.now())  # and nothing more
        _queue(endpoint)
        with _couriers():
            wait_until(lambda: _states(endpoint) == {"exhausted": 1})
        assert not receiver.connections


@pytest.mark.parametrize("since", [timedelta(hours=71), timedelta(0)])
def test_an_endpoint_that_fails_for_less_long_stays_enabled(since: timedelta) -> None:
    with Receiver(500) as receiver:
        endpoint = _endpoint(receiver.url)
        WebhookEndpoint.objects.update(consecutive_failures=1000, failing_since=timezone.now() - since)
        _queue(endpoint)
        with _couriers():
            wait_until(lambda: _states(endpoint) == {"exhausted": 1})
        endpoint.refresh_from_db()
        assert endpoint.disabled_at is None


def test_a_deleted_endpoint_is_sent_nothing_more() -> None:
    with Receiver(500) as receiver:
        endpoint = _endpoint(receiver.url)
        _queue(endpoint, 5)
        endpoints.delete(endpoint)
        with _couriers():
            time.sleep(0.3)
        assert not receiver.connections
        assert _states(endpoint) == {"exhausted": 5}


def test_no_secret_lies_in_the_database_as_it_is() -> None:
    endpoint, secret = endpoints.create(
        Project.default(), {"name": "n", "url": "http://127.0.0.1:1/", "event_types": ["batch.failed"]}
    )
    endpoints.rotate(endpoint, {"keep_old_secret_active_for_24_hours": True})
    with connection.cursor() as cursor:
        cursor.execute("SELECT row_to_json(e)::text FROM batches_webhookendpoint e")
        (row,) = cursor.fetchone()
    assert secret.removeprefix("whsec_")[:20] not in row
    assert WebhookEndpoint.objects.get().secrets(timezone.now())[1] == secret


def test_secrets_sealed_under_another_key_fail_loudly_and_are_not_sent_unsigned(settings: Any) -> None:
    with Receiver() as receiver:
        endpoint = _endpoint(receiver.url)
        settings.SECRET_KEY = "another"
        (_,) = _queue(endpoint)
        with _couriers():
            wait_until(lambda: _states(endpoint) == {"exhausted": 1})
        assert not receiver.connections
        assert "another VBATCH_SECRET_KEY" in WebhookDelivery.objects.get().last_error


def test_an_old_secret_signs_no_more_after_the_overlap() -> None:
    endpoint, old = endpoints.create(
        Project.default(), {"name": "n", "url": "http://127.0.0.1:1/", "event_types": ["batch.failed"]}
    )
    new = endpoints.rotate(endpoint, {"keep_old_secret_active_for_24_hours": True})
    now = timezone.now()
    assert endpoint.secrets(now) == [new, old]
    assert endpoint.secrets(now + endpoints.OVERLAP) == [new]


def test_a_lost_doorbell_is_made_up_for_by_the_sweep() -> None:
    endpoint = _endpoint("http://127.0.0.1:1/")
    _queue(endpoint)
    OrmQ.objects.all().delete()
    deliveries.sweep(timezone.now())
    assert not OrmQ.objects.exists()  # its own doorbell may still come
    deliveries.sweep(timezone.now() + timedelta(minutes=1))
    assert OrmQ.objects.count() == 1


def test_what_nobody_has_tried_is_due_whatever_clock_it_was_made_by() -> None:
    endpoint = _endpoint("http://127.0.0.1:1/")
    untried, tried = _queue(endpoint, 2)
    later = timezone.now() + timedelta(hours=1)
    WebhookDelivery.objects.update(next_attempt_at=later)
    WebhookDelivery.objects.filter(pk=tried.pk).update(attempts=1)
    assert deliveries.claim(10, {}) == []
    OrmQ.objects.all().delete()
    deliveries.sweep(timezone.now())
    assert OrmQ.objects.count() == 1
    assert [attempt.delivery_id for attempt in deliveries.claim(10, {})] == [untried.pk]


def test_old_deliveries_are_swept_and_those_on_their_way_are_not() -> None:
    endpoint = _endpoint("http://127.0.0.1:1/")
    old, waiting, _ = _queue(endpoint, 3)
    long_ago = timezone.now() - deliveries.KEPT_FOR - timedelta(minutes=1)
    WebhookDelivery.objects.filter(pk__in=[old.pk, waiting.pk]).update(created_at=long_ago)
    WebhookDelivery.objects.exclude(pk=waiting.pk).update(state=DeliveryState.DELIVERED.value)
    deliveries.sweep(timezone.now())
    assert not WebhookDelivery.objects.filter(pk=old.pk).exists()
    assert WebhookDelivery.objects.count() == 2


def test_a_deleted_endpoint_goes_when_its_deliveries_have_gone() -> None:
    endpoint = _endpoint("http://127.0.0.1:1/")
    _queue(endpoint)
    endpoints.delete(endpoint)
    long_ago = timezone.now() - deliveries.KEPT_FOR - timedelta(minutes=1)
    WebhookEndpoint.objects.update(deleted_at=long_ago)
    deliveries.sweep(timezone.now())
    assert WebhookEndpoint.objects.exists()
    WebhookDelivery.objects.update(created_at=long_ago)
    deliveries.sweep(timezone.now())
    assert not WebhookEndpoint.objects.exists()


def test_a_stopped_courier_gives_back_what_it_could_not_finish() -> None:
    with Receiver() as receiver:
        receiver.behaviours = [receiver.hang]
        endpoint = _endpoint(receiver.url)
        _queue(endpoint)
        with _couriers():
            wait_until(lambda: receiver.received)
        (attempt,) = deliveries.claim(10, {})
        assert attempt.number == 2
