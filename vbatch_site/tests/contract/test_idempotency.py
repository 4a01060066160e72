"""A request that names a key can be repeated: it makes its object once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import openai
import pytest
from django.utils import timezone

from vbatch_site.models import IdempotencyKey, Project
from vbatch_site.openai import idempotency
from vbatch_site.tests.contract.forms import LINE, Part, assert_nothing_left, multipart, uploaded_files
from vbatch_site.tests.servers import Server, chat_line

Answer = tuple[int, dict[str, str], Any]


@pytest.fixture
def key() -> str:
    """Return a key that nobody has used."""
    return uuid4().hex


@pytest.fixture
def batch_body(sim_server: Server) -> dict[str, Any]:
    """Return a request for a batch of one line."""
    file_id = sim_server.upload(chat_line("r1"))
    return {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def create(server: Server, body: dict[str, Any], key: str, bearer: str = "") -> Answer:
    """Create a batch under a key."""
    return server.request("POST", "/v1/batches", body, headers={"Idempotency-Key": key}, key=bearer)


def upload(
    server: Server, key: str, content: bytes = LINE, name: str = "a.jsonl", purpose: str = "batch", seconds: int = 0
) -> Answer:
    """Upload a file under a key; the boundary is another one each time, as with the SDKs."""
    edge = uuid4().hex
    fields: list[Part] = [("file", name, content), ("purpose", None, purpose)]
    if seconds:
        fields += [
            ("expires_after[anchor]", None, "created_at"),
            ("expires_after[seconds]", None, str(seconds)),
        ]
    headers = {"Content-Type": f"multipart/form-data; boundary={edge}", "Idempotency-Key": key}
    return server.request("POST", "/v1/files", multipart(fields, edge), headers=headers)


def assert_reused(answer: Answer) -> None:
    """Check that an answer is the refusal of a key with another request."""
    status, headers, body = answer
    assert status == 409, body
    assert headers["x-should-retry"] == "false"
    assert body["error"]["type"] == "invalid_request_error"
    assert body["error"]["code"] == "idempotency_key_reused"


def test_a_batch_of_the_same_key_and_body_is_the_first_one(
    sim_server: Server, key: str, batch_body: dict[str, Any]
) -> None:
    first = create(sim_server, batch_body, key)[2]
    reordered = dict(reversed(batch_body.items()))
    assert create(sim_server, reordered, key)[2]["id"] == first["id"]
    assert create(sim_server, batch_body, uuid4().hex)[2]["id"] != first["id"]
    assert sim_server.query("SELECT count(*) FROM batches_batch WHERE input_file_id = %s", first["input_file_id"]) == [
        (2,)
    ]


def test_a_key_with_another_body_is_a_409_that_no_sdk_repeats(
    sim_server: Server, key: str, batch_body: dict[str, Any]
) -> None:
    create(sim_server, batch_body, key)
    assert_reused(create(sim_server, {**batch_body, "metadata": {"a": "b"}}, key))
    assert_reused(upload(sim_server, key))
    client = openai.OpenAI(base_url=sim_server.base_url, api_key=sim_server.key)
    with pytest.raises(openai.ConflictError, match=key):
        client.batches.create(
            **{**batch_body, "endpoint": "/v1/embeddings"}, extra_headers={"Idempotency-Key": key}
        )  # fmt: skip


def test_batches_of_one_key_at_the_same_time_are_one(sim_server: Server, key: str, batch_body: dict[str, Any]) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: create(sim_server, batch_body, key), range(8)))
    assert {status for status, _, _ in answers} == {200}
    assert len({body["id"] for _, _, body in answers}) == 1
    batch_id = answers[0][2]["id"]
    file_id = batch_body["input_file_id"]
    assert sim_server.query("SELECT id FROM batches_batch WHERE input_file_id = %s", file_id) == [(batch_id,)]
    assert sim_server.wait(batch_id)["status"] == "completed"


def test_a_refused_request_leaves_its_key_free(sim_server: Server, key: str, batch_body: dict[str, Any]) -> None:
    assert create(sim_server, {**batch_body, "endpoint": "/v1/nothing"}, key)[0] == 400
    assert create(sim_server, batch_body, key)[0] == 200


def test_a_key_belongs_to_its_project(sim_server: Server, key: str, batch_body: dict[str, Any], other_key: str) -> None:
    mine = create(sim_server, batch_body, key)[2]["id"]
    status, _, theirs = create(sim_server, {**batch_body, "metadata": {"a": "b"}}, key, other_key)
    assert status == 200
    assert theirs["id"] != mine


def test_a_key_counts_for_a_day(sim_server: Server, key: str, batch_body: dict[str, Any]) -> None:
    first = create(sim_server, batch_body, key)[2]["id"]
    aged = "UPDATE vbatch_site_idempotencykey SET created_at = created_at - %s::interval WHERE key = %s RETURNING id"
    assert sim_server.query(aged, "23 hours 59 minutes", key)
    assert create(sim_server, batch_body, key)[2]["id"] == first
    assert sim_server.query(aged, "2 minutes", key)
    assert create(sim_server, {**batch_body, "metadata": None}, key)[2]["id"] != first


@pytest.mark.parametrize("bad", ["", "x" * 256, "caf\u00e9"], ids=["empty", "long", "not ascii"])
def test_a_key_that_can_not_be_kept_is_refused(sim_server: Server, batch_body: dict[str, Any], bad: str) -> None:
    status, _, answer = create(sim_server, batch_body, bad)
    assert (status, answer["error"]["param"]) == (400, "Idempotency-Key")


def test_a_file_of_the_same_key_and_content_is_the_first_one(sim_server: Server, key: str) -> None:
    first = upload(sim_server, key)
    assert first[0] == 200
    assert upload(sim_server, key)[2] == first[2]
    assert_nothing_left(sim_server)


@pytest.mark.parametrize(
    "other",
    [{"content": LINE + LINE}, {"name": "b.jsonl"}, {"purpose": "fine-tune"}, {"seconds": 3600}],
    ids=["content", "filename", "purpose", "expires_after"],
)
def test_a_file_that_differs_in_anything_is_a_409(sim_server: Server, key: str, other: dict[str, Any]) -> None:
    assert upload(sim_server, key)[0] == 200
    assert_reused(upload(sim_server, key, **other))
    assert_nothing_left(sim_server)


def test_files_of_one_key_at_the_same_time_are_one(sim_server: Server, key: str) -> None:
    content = chat_line("r1", text="x" * 4_000_000).encode()
    before = uploaded_files(sim_server)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: upload(sim_server, key, content), range(6)))
    assert {status for status, _, _ in answers} == {200}, answers
    assert len({body["id"] for _, _, body in answers}) == 1
    assert uploaded_files(sim_server) == before + 1
    assert_nothing_left(sim_server)


def test_a_file_that_was_deleted_since_does_not_come_back(sim_server: Server, key: str) -> None:
    first = upload(sim_server, key)[2]["id"]
    assert sim_server.request("DELETE", f"/v1/files/{first}")[0] == 200
    assert upload(sim_server, key)[0] == 404


@pytest.fixture
def two_keys() -> Iterator[Project]:
    """Make a key of a minute ago and one of a day ago."""
    project = Project.default()
    for name, age in (("new", timedelta(minutes=1)), ("old", idempotency.KEY_LIFE)):
        IdempotencyKey.objects.create(project=project, key=name, object_id="x", created_at=timezone.now() - age)
    yield project


@pytest.mark.django_db
def test_the_sweep_forgets_old_keys(two_keys: Project) -> None:
    idempotency.sweep(timezone.now())
    assert [row.key for row in IdempotencyKey.objects.filter(project=two_keys)] == ["new"]
