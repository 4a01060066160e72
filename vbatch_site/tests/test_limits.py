"""Limits of projects: what is counted, what a refusal says, and when the next request may come."""

from datetime import timedelta
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from batches.models import Batch
from batches.quota import check_batch_rate
from batches.states import BatchStatus
from batches.tests.rows import new_batch
from batches.validate import validate
from files.uploads import create_file
from vbatch_site.env import env_numbers
from vbatch_site.limits import spell
from vbatch_site.models import ApiKey, Project
from vbatch_site.openai.errors import ApiError
from vbatch_site.settings import PROJECT_LIMITS
from vbatch_site.tests.servers import chat_line
from vbatch_site.tests.test_tenancy import API_ROUTES, Route

pytestmark = pytest.mark.django_db


class Tenant:
    """A project, a key of it, and its requests."""

    def __init__(self, **limits: int) -> None:
        self.project = Project.objects.create(name="tenant", **limits)
        text = ApiKey.issue(self.project, "test")[1]
        self.client = Client(headers={"Authorization": f"Bearer {text}"})

    def get(self, path: str = "/v1/files") -> Any:
        return self.client.get(path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self.client.post(path, body, content_type="application/json")

    def create(self, file_id: str = "file-x") -> Any:
        wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return self.post("/v1/batches", wanted)

    def run(self, lines: int, size: int = 10) -> Batch:
        """Upload a file of so many lines, and create and validate a batch of it."""
        content = "".join(chat_line(str(i), "x" * size) for i in range(lines))
        # Not over HTTP: the parser of forms lets go of the connection that holds the test's transaction.
        file = create_file(self.project, SimpleUploadedFile("f.jsonl", content.encode()), "batch", None)
        batch_id = self.create(file.pk).json()["id"]
        validate(batch_id)
        return Batch.objects.get(pk=batch_id)


def _refusal(answer: Any) -> tuple[int, str, str]:
    error = answer.json()["error"]
    return answer.status_code, error["type"], error["code"]


def test_without_a_limit_nothing_is_counted_or_said() -> None:
    tenant = Tenant()
    tenant.get()
    with CaptureQueriesContext(connection) as captured:
        answer = tenant.get()
    assert not [name for name in answer.headers if name.lower().startswith("x-ratelimit")]
    assert len(captured) <= 2


def test_every_answer_says_how_the_project_stands() -> None:
    # One comes back in fifteen seconds, and none while this test runs.
    tenant = Tenant(requests_per_minute=4)
    for left in (3, 2):
        answer = tenant.get()
        assert answer.headers["x-ratelimit-limit-requests"] == "4"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(left)
        # Fifteen seconds for each request that is missing.
        assert answer.headers["x-ratelimit-reset-requests"].endswith("s")
    assert tenant.get("/v1/files/file-x").headers["x-ratelimit-remaining-requests"] == "1"


def test_a_request_too_many_is_told_when_to_come_back() -> None:
    tenant = Tenant(requests_per_minute=2)
    assert [tenant.get().status_code for _ in range(3)] == [200, 200, 429]
    answer = tenant.get()
    assert _refusal(answer) == (429, "requests", "rate_limit_exceeded")
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert 15 <= int(answer.headers["retry-after"]) <= 30
    assert 15_000 <= int(answer.headers["retry-after-ms"]) <= 30_000
    # Half a minute later there is room for one, and a minute later for both.
    with connection.cursor() as cursor:
        cursor.execute("UPDATE vbatch_site_requestbucket SET full_at = full_at - 30000000")
    assert [tenant.get().status_code for _ in range(2)] == [200, 429]


def test_counting_a_request_takes_one_statement() -> None:
    tenant = Tenant(requests_per_minute=1000)
    tenant.get()
    with CaptureQueriesContext(connection) as captured:
        tenant.get()
    assert len([query for query in captured if "requestbucket" in query["sql"]]) == 1


def test_projects_do_not_spend_each_others_requests() -> None:
    one = Tenant(requests_per_minute=1)
    other = Project.objects.create(name="other", requests_per_minute=1)
    bearer = {"Authorization": f"Bearer {ApiKey.issue(other, 'test')[1]}"}
    assert (one.get().status_code, one.get().status_code) == (200, 429)
    assert Client().get("/v1/files", headers=bearer).status_code == 200


@pytest.mark.parametrize("route", API_ROUTES, ids=lambda route: route.path)
def test_every_route_of_the_api_counts(route: Route) -> None:
    tenant = Tenant(requests_per_minute=1)
    path = route.path.format(**dict.fromkeys(route.parameters, "x"))
    tenant.get()
    for method in route.methods:
        assert getattr(tenant.client, method)(path).status_code == 429, method


def test_a_projects_own_limit_goes_before_the_servers_and_0_is_none(settings: Settings) -> None:
    settings.VBATCH_PROJECT_LIMITS = {"requests_per_minute": 5}
    limits = {}
    for name, own in (("plain", None), ("own", 7), ("free", 0)):
        project = Project.objects.create(name=name, requests_per_minute=own)
        bearer = {"Authorization": f"Bearer {ApiKey.issue(project, 'test')[1]}"}
        limits[name] = Client().get("/v1/files", headers=bearer).headers.get("x-ratelimit-limit-requests")
    assert limits == {"plain": "5", "own": "7", "free": None}


def test_batches_per_hour_are_counted_over_the_last_hour() -> None:
    tenant = Tenant(batches_per_hour=2)
    assert [tenant.create().status_code for _ in range(2)] == [200, 200]
    answer = tenant.create()
    assert _refusal(answer) == (429, "requests", "rate_limit_exceeded")
    assert 3540 <= int(answer.headers["retry-after"]) <= 3600
    Batch.objects.filter(pk=Batch.objects.earliest("created_at").pk).update(
        created_at=timezone.now() - timedelta(hours=1)
    )
    assert [tenant.create().status_code for _ in range(2)] == [200, 429]
    assert Batch.objects.count() == 3


def _queue(tenant: Tenant, lines: int, size: int = 10) -> str | None:
    """Run a batch and return the code that it failed with, None when it is in line."""
    batch = tenant.run(lines, size)
    if batch.status == BatchStatus.IN_PROGRESS:
        return None
    assert batch.errors is not None
    return str(batch.errors["data"][0]["code"])


def test_requests_in_line_are_counted_until_they_are_done() -> None:
    tenant = Tenant(queued_requests=5)
    assert _queue(tenant, 6) == "request_limit_exceeded"
    assert _queue(tenant, 3) is None
    assert _queue(tenant, 3) == "request_limit_exceeded"
    Batch.objects.filter(status=BatchStatus.IN_PROGRESS).update(completed=1)
    assert _queue(tenant, 3) is None


def test_tokens_in_line_are_counted_by_project_and_model(settings: Settings) -> None:
    settings.VBATCH_PROJECT_LIMITS = {"queued_tokens": 1}
    tenant = Tenant(queued_tokens=1000)
    assert _queue(tenant, 1, size=2000) is None
    assert _queue(tenant, 1, size=2000) == "token_limit_exceeded"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.12, "120ms"), (8.64, "8.64s"), (59.5, "59.5s"), (60, "1m0s"), (90.25, "1m30.25s")],
)
def test_lengths_of_time_are_spelled_as_openai_does(seconds: float, text: str) -> None:
    assert spell(seconds) == text


def test_the_servers_limits_are_read_from_one_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBATCH_PROJECT_LIMITS", "requests_per_minute=600, storage_bytes=100")
    assert env_numbers("VBATCH_PROJECT_LIMITS", PROJECT_LIMITS) == {"requests_per_minute": 600, "storage_bytes": 100}


@pytest.mark.parametrize("wrong", ["requests=1", "storage_bytes", "storage_bytes=-1", "storage_bytes=1e9"])
def test_a_limit_that_makes_no_sense_stops_the_server(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("VBATCH_PROJECT_LIMITS", wrong)
    with pytest.raises(SystemExit, match="VBATCH_PROJECT_LIMITS"):
        env_numbers("VBATCH_PROJECT_LIMITS", PROJECT_LIMITS)


def test_every_servers_limit_is_a_projects_field() -> None:
    assert set(PROJECT_LIMITS) <= {field.name for field in Project._meta.fields}


def test_what_was_counted_before_the_clock_was_set_back_refuses_nobody() -> None:
    tenant = Tenant(requests_per_minute=2, batches_per_hour=1)
    for _ in range(2):
        tenant.get()
    assert tenant.get().status_code == 429
    with connection.cursor() as cursor:
        cursor.execute("UPDATE vbatch_site_requestbucket SET full_at = full_at + 3600 * 1000000::bigint")
    assert tenant.get().headers["x-ratelimit-remaining-requests"] == "1"
    new_batch(project=tenant.project)
    with pytest.raises(ApiError):
        check_batch_rate(tenant.project)
    Batch.objects.update(created_at=timezone.now() + timedelta(hours=1))
    check_batch_rate(tenant.project)
