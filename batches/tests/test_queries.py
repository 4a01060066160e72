"""What the API costs the database: a page of any size takes the same number of queries."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches.models import Batch
from batches.states import BatchStatus
from batches.webhooks import endpoints
from batches.webhooks.events import draft
from batches.webhooks.payload import EventType
from files.models import File, Purpose
from vbatch_site.models import ApiKey, Project

pytestmark = pytest.mark.django_db


@pytest.fixture
def client() -> Client:
    """A client of the default project, whose key was used a moment ago."""
    _, key = ApiKey.issue(Project.default(), "test")
    client = Client(headers={"authorization": f"Bearer {key}"})
    client.get("/v1/models")
    return client


def _batches(count: int) -> list[Batch]:
    fields: dict[str, Any] = {
        "project": Project.default(),
        "endpoint": "/v1/chat/completions",
        "input_file_id": "file-x",
        "completion_window": "24h",
    }
    return [Batch.begin(window=timedelta(hours=24), **fields) for _ in range(count)]


def _queries(client: Client, path: str, rows: int | None = None) -> int:
    with CaptureQueriesContext(connection) as captured:
        answer = client.get(path)
    assert answer.status_code == 200
    assert rows is None or len(answer.json()["data"]) == rows
    return len(captured)


def test_showing_a_batch_takes_at_most_seven_queries_and_one_that_ended_three(client: Client) -> None:
    (batch,) = _batches(1)
    assert _queries(client, f"/v1/batches/{batch.pk}") <= 5
    batch.move(BatchStatus.IN_PROGRESS, model="m", total=100)
    assert _queries(client, f"/v1/batches/{batch.pk}") <= 7
    batch.move(BatchStatus.FINALIZING)
    batch.move(BatchStatus.COMPLETED)
    assert _queries(client, f"/v1/batches/{batch.pk}") <= 3


def test_listing_batches_takes_the_same_queries_for_1_as_for_100(client: Client) -> None:
    for batch in _batches(100):
        batch.move(BatchStatus.IN_PROGRESS, model="m", total=100)
    one, all_of_them = (_queries(client, f"/v1/batches?limit={limit}", limit) for limit in (1, 100))
    assert one == all_of_them <= 7


def test_the_queue_takes_the_same_queries_for_1_as_for_100(client: Client) -> None:
    counts = []
    for more in (1, 99):
        for batch in _batches(more):
            batch.move(BatchStatus.IN_PROGRESS, model="m", total=100)
        counts.append(_queries(client, "/v1/queue"))
    assert counts[0] == counts[1] <= 8


def test_listing_files_takes_the_same_queries_for_1_as_for_100(client: Client) -> None:
    for i in range(100):
        File.objects.create(project=Project.default(), purpose=Purpose.BATCH, filename="x", bytes=1, path=str(i))
    one, all_of_them = (_queries(client, f"/v1/files?limit={limit}", limit) for limit in (1, 100))
    assert one == all_of_them <= 2


def test_listing_webhooks_takes_the_same_queries_for_1_as_for_100(client: Client) -> None:
    wanted = {"name": "n", "url": "https://nobody.invalid/", "event_types": ["batch.failed"]}
    made = [endpoints.create(Project.default(), wanted)[0] for _ in range(100)]
    for endpoint in made:
        draft(endpoint, "evt_x", EventType.FAILED, b"{}", timezone.now()).save()
    for path in ("/v1/webhook_endpoints", "/v1/webhook_deliveries"):
        one, all_of_them = (_queries(client, f"{path}?limit={limit}", limit) for limit in (1, 100))
        assert one == all_of_them <= 2


def test_a_page_after_another_takes_one_more_query(client: Client) -> None:
    after = _batches(3)[-1].pk
    assert _queries(client, f"/v1/batches?after={after}", 2) <= 6
