"""Items 98 to 102: webhooks, as receivers see them."""

import hashlib
import hmac
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from vbatch_site.tests.contract.forms import assert_refused
from vbatch_site.tests.contract.test_sdks import CLIENTS, MAJORS, SDKS
from vbatch_site.tests.receiver import Received, Receiver, status
from vbatch_site.tests.servers import Server, chat_line, wait_until

SECRET = "a secret of the user's own"


@pytest.fixture(scope="module")
def hook_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that delivers to this machine, gives receivers three seconds, and tries again soon."""
    settings = {
        "VBATCH_WEBHOOK_ALLOW_PRIVATE": "on",
        # A receiver is a thread of the test's: a busy machine must not make it one that is silent.
        "VBATCH_WEBHOOK_TIMEOUT": "3",
        "VBATCH_WEBHOOK_RETRY_SECONDS": "0.2",
        "VBATCH_WEBHOOK_MAX_ATTEMPTS": "4",
        "VBATCH_COMPLETION_WINDOWS": "24h,3s",
    }
    with Server(tmp_path_factory.mktemp("hooks"), **settings) as server:
        yield server


def _unwrap(request: Received, secret: str) -> Any:
    return openai.OpenAI(api_key="unused").webhooks.unwrap(request.body, request.headers, secret=secret)


def _check_signed(request: Received, secret: str) -> None:
    """Check a request in each way in which receivers do."""
    event = json.loads(request.body)
    assert _unwrap(request, secret).id == event["id"]
    if secret.startswith("whsec_"):
        assert Webhook(secret).verify(request.body, request.headers) == event
    wanted = hmac.new(secret.encode(), request.body, hashlib.sha256).hexdigest()
    assert request.headers["x-webhook-signature"] == wanted
    assert request.headers["x-webhook-timestamp"] == request.headers["webhook-timestamp"]


def _deliveries(server: Server, **filters: str) -> list[dict[str, Any]]:
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    status, _, answer = server.request("GET", f"/v1/webhook_deliveries?limit=100&{query}")
    assert status == 200, answer
    return list(answer["data"])


def _ended(server: Server, batch_id: str) -> dict[str, Any]:
    """Return the batch's delivery once nobody will try it again."""

    def ended() -> dict[str, Any] | None:
        found = _deliveries(server, batch_id=batch_id)
        return found[0] if found and found[0]["status"] in ("delivered", "exhausted") else None

    return dict(wait_until(ended, 60))


END = {
    "completed": ([chat_line("0")], {}),
    "failed": ([chat_line("0"), "not json\n"], {}),
    "expired": ([chat_line("0"), chat_line("1", "[[sim:hang]]")], {"completion_window": "3s"}),
    "cancelled": ([chat_line("0"), chat_line("1", "[[sim:hang]]")], {}),
}


@pytest.mark.parametrize("end", END)
def test_item_98_each_end_of_a_batch_sends_its_event_in_both_dialects(hook_server: Server, end: str) -> None:
    lines, fields = END[end]
    with Receiver() as receiver:
        webhook = {"url": receiver.url, "secret": SECRET}
        batch_id = hook_server.create(lines, webhook=webhook, metadata={"team": "a"}, **fields)
        if end == "cancelled":
            hook_server.wait(batch_id, statuses=["in_progress"])
            hook_server.request("POST", f"/v1/batches/{batch_id}/cancel")
        batch = hook_server.wait(batch_id)
        assert batch["status"] == end
        delivery = _ended(hook_server, batch_id)
        (request,) = receiver.received
        _check_signed(request, SECRET)
        event = _unwrap(request, SECRET)
        assert type(event).__name__ == f"Batch{end.capitalize()}WebhookEvent"
        assert event.data.to_dict() == {"id": batch_id}
        assert json.loads(request.body) == {
            "object": "event",
            "id": delivery["event_id"],
            "type": f"batch.{end}",
            "created_at": batch[f"{end}_at"],
            "data": {"id": batch_id},
            "event": f"batch.{end}",
            "batch_id": batch_id,
            "status": end,
            "output_file_id": batch["output_file_id"],
            "error_file_id": batch["error_file_id"],
            "request_counts": batch["request_counts"],
            "metadata": {"team": "a"},
        }
        assert re.fullmatch("evt_[0-9a-f]{32}", event.id)
        assert re.fullmatch("wh_[0-9a-f]{32}", request.headers["webhook-id"])
        assert request.headers["content-type"] == "application/json"
        assert (delivery["status"], delivery["attempts"], delivery["last_status_code"]) == ("delivered", 1, 200)


def test_item_99_a_retry_keeps_its_id_and_has_a_new_timestamp_and_signature(hook_server: Server) -> None:
    with Receiver(500, 503, 204) as receiver:
        batch_id = hook_server.create([chat_line("0")], webhook={"url": receiver.url, "secret": SECRET})
        assert _ended(hook_server, batch_id)["status"] == "delivered"
        assert len(receiver.received) == 3
        for request in receiver.received:
            _check_signed(request, SECRET)
            assert abs(int(request.headers["webhook-timestamp"]) - request.at) < 10
        assert len({request.headers["webhook-id"] for request in receiver.received}) == 1
        assert len({request.body for request in receiver.received}) == 1
        assert receiver.received[2].at - receiver.received[0].at > 0.2 * 0.8 * 3


def test_item_100_redirects_and_silence_are_failures_and_end_in_a_dead_letter(hook_server: Server) -> None:
    with Receiver() as elsewhere, Receiver() as receiver:
        redirect = status(307, f"Location: {elsewhere.url}")
        receiver.behaviours = [redirect, receiver.hang, receiver.reset, 410]
        batch_id = hook_server.create([chat_line("0")], webhook={"url": receiver.url, "secret": SECRET})
        delivery = _ended(hook_server, batch_id)
        assert (delivery["status"], delivery["attempts"], delivery["next_attempt_at"]) == ("exhausted", 4, None)
        detail = hook_server.request("GET", f"/v1/webhook_deliveries/{delivery['id']}")[2]
        assert [attempt["status"] for attempt in detail["log"]] == [307, None, None, 410]
        assert "no answer within 3 s" in detail["log"][1]["error"]
        assert not elsewhere.received
        assert len(receiver.received) == 4


def _client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0)


def _test_request(server: Server, receiver: Receiver, endpoint_id: str) -> Received:
    """Have a test sent and return it as it arrived."""
    before = len(receiver.received)
    result = _client(server).webhooks.test(endpoint_id, event_type="batch.completed")
    assert result.status_code == 200
    assert len(receiver.received) == before + 1
    return receiver.received[-1]


def _verifies(request: Received, secret: str) -> bool:
    try:
        _unwrap(request, secret)
        Webhook(secret).verify(request.body, request.headers)
    except (openai.InvalidWebhookSignatureError, WebhookVerificationError):
        return False
    return True


@pytest.mark.parametrize("keep", [True, False])
def test_item_101_an_old_secret_verifies_during_the_overlap_only(hook_server: Server, keep: bool) -> None:
    with Receiver() as receiver:
        webhooks = _client(hook_server).webhooks
        endpoint = webhooks.create(name="rotating", url=receiver.url, event_types=["batch.completed"])
        old = endpoint.signing_secret
        assert _verifies(_test_request(hook_server, receiver, endpoint.id), old)
        new = webhooks.rotate_secret(endpoint.id, keep_old_secret_active_for_24_hours=keep).signing_secret
        request = _test_request(hook_server, receiver, endpoint.id)
        assert (_verifies(request, new), _verifies(request, old)) == (True, keep)
        assert len(request.headers["webhook-signature"].split(" ")) == 1 + keep
        _check_signed(request, new)
        webhooks.delete(endpoint.id)


def test_item_102_endpoints_have_the_shapes_of_the_contract(hook_server: Server) -> None:
    with Receiver(200, 503) as receiver:
        webhooks = _client(hook_server).webhooks
        made = webhooks.create(name="one", url=receiver.url, event_types=["batch.completed", "batch.failed"])
        assert re.fullmatch("whe_[0-9a-f]{32}", made.id)
        assert re.fullmatch("whsec_[A-Za-z0-9+/]{43}=", made.signing_secret)
        shown = made.to_dict()
        secret = str(shown.pop("signing_secret"))
        assert shown == {
            "id": made.id,
            "object": "webhook_endpoint",
            "created_at": made.created_at,
            "updated_at": made.created_at,
            "name": "one",
            "url": receiver.url,
            "event_types": ["batch.completed", "batch.failed"],
            "signing_secret_hint": f"whsec_...{secret[-4:]}",
        }
        assert webhooks.retrieve(made.id).to_dict() == shown
        result = webhooks.test(made.id, event_type="batch.failed").to_dict()
        assert result == {
            "object": "webhook_endpoint.test",
            "webhook_endpoint_id": made.id,
            "event_type": "batch.failed",
            "status_code": 200,
            "success": True,
        }
        # Success means that the receiver answered, whatever it answered.
        again = webhooks.test(made.id, event_type="batch.failed")
        assert (again.status_code, again.success) == (503, True)
        assert webhooks.update(made.id, name="one").to_dict() == shown
        wait_until(lambda: int(time.time()) > made.created_at)
        changed = webhooks.update(made.id, name="two", event_types=["batch.expired"])
        assert (changed.name, changed.url, changed.event_types) == ("two", receiver.url, ["batch.expired"])
        assert changed.updated_at and changed.updated_at > made.created_at
        rotated = webhooks.rotate_secret(made.id)
        assert rotated.signing_secret not in (secret, None)
        assert "signing_secret" not in webhooks.retrieve(made.id).to_dict()
        gone = webhooks.delete(made.id).to_dict()
        assert gone == {"id": made.id, "object": "webhook_endpoint.deleted", "deleted": True}
        for call in (webhooks.retrieve, webhooks.delete, webhooks.rotate_secret, webhooks.update):
            with pytest.raises(openai.NotFoundError):
                call(made.id)


def test_item_102_endpoints_are_listed_newest_first_and_paged(hook_server: Server) -> None:
    key = hook_server.new_key("paging")
    webhooks = openai.OpenAI(base_url=hook_server.base_url, api_key=key).webhooks
    empty = webhooks.list()
    assert (empty.data, empty.has_more, empty.to_dict()["first_id"]) == ([], False, None)
    made = [
        webhooks.create(name=f"{i}", url="http://127.0.0.1:1/", event_types=["batch.completed"]).id for i in range(5)
    ]
    assert [endpoint.id for endpoint in webhooks.list(limit=2)] == made[::-1]
    # A page goes on where it ended, also when that endpoint was deleted meanwhile.
    webhooks.delete(made[3])
    assert [endpoint.id for endpoint in webhooks.list(limit=2, after=made[3])] == made[2::-1]
    assert "signing_secret" not in webhooks.list().data[0].to_dict()


def test_item_102_event_types_are_the_sdks_and_our_own(hook_server: Server) -> None:
    listed = _client(hook_server).webhooks.event_types.list()
    own = ["batch.completed", "batch.failed", "batch.expired", "batch.cancelled", "batch.progress"]
    assert listed.to_dict() == {"object": "list", "data": own}


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"url": "https://a.example/", "event_types": ["batch.failed"]}, "name", "missing_required_parameter"),
        ({"name": "n", "event_types": ["batch.failed"]}, "url", "missing_required_parameter"),
        ({"name": "n", "url": "https://a.example/"}, "event_types", "missing_required_parameter"),
        ({"name": 1, "url": "https://a.example/", "event_types": ["batch.failed"]}, "name", "invalid_type"),
        (
            {"name": "n" * 257, "url": "https://a.example/", "event_types": ["batch.failed"]},
            "name",
            "string_above_max_length",
        ),
        ({"name": "n", "url": "https://a.example/", "event_types": []}, "event_types", "empty_array"),
        ({"name": "n", "url": "https://a.example/", "event_types": "batch.failed"}, "event_types", "invalid_type"),
        (
            {"name": "n", "url": "https://a.example/", "event_types": ["response.completed"]},
            "event_types[0]",
            "invalid_value",
        ),
    ],
)
def test_item_102_bad_endpoints_are_refused_in_the_envelope(
    sim_server: Server, body: dict[str, Any], param: str, code: str
) -> None:
    answer = sim_server.request("POST", "/v1/webhook_endpoints", body)
    assert_refused(answer, 400, param=param, code=code)


BAD_URLS = [
    "http://a.example/",
    "ftp://a.example/",
    "https://",
    "https://a b/",
    "https://user:password@a.example/",
    "https://a.example:0/",
    "https://a.example:99999/",
    "https://[::1/",
    "https://localhost/",
    "https://sub.localhost./",
    "https://127.0.0.1/",
    "https://2130706433/",
    "https://0x7f.1/",
    "https://10.1.2.3:8443/",
    "https://169.254.169.254/latest/",
    "https://[::1]/",
    "https://[::ffff:10.0.0.1]/",
    "https://[64:ff9b::a00:1]/",
    "a.example",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_urls_that_nothing_may_be_sent_to_are_refused(sim_server: Server, url: str) -> None:
    body = {"name": "n", "url": url, "event_types": ["batch.failed"]}
    assert_refused(sim_server.request("POST", "/v1/webhook_endpoints", body), 400, param="url", code="invalid_url")


@pytest.mark.parametrize(
    ("webhook", "param", "code"),
    [
        ("https://a.example/", "webhook", "invalid_type"),
        ({}, "webhook.url", "missing_required_parameter"),
        ({"url": "https://127.0.0.1/"}, "webhook.url", "invalid_url"),
        ({"url": 1}, "webhook.url", "invalid_type"),
        ({"url": "https://a.example/", "secret": 1}, "webhook.secret", "invalid_type"),
        ({"url": "https://a.example/", "secret": ""}, "webhook.secret", "invalid_value"),
        ({"url": "https://a.example/", "secret": "whsec_!"}, "webhook.secret", "invalid_value"),
        ({"url": "https://a.example/", "secret": "x" * 257}, "webhook.secret", "string_above_max_length"),
        ({"url": "https://a.example/", "events": ["started"]}, "webhook.events[0]", "invalid_value"),
        ({"url": "https://a.example/", "events": []}, "webhook.events", "empty_array"),
        ({"url": "https://a.example/", "sercet": "x"}, "webhook.sercet", "unknown_parameter"),
    ],
)
def test_a_bad_webhook_of_a_batch_is_refused_in_the_envelope(
    sim_server: Server, webhook: Any, param: str, code: str
) -> None:
    wanted = {
        "input_file_id": sim_server.upload(chat_line("0")),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "webhook": webhook,
    }
    assert_refused(sim_server.request("POST", "/v1/batches", wanted), 400, param=param, code=code)


def test_a_batchs_webhook_is_not_shown_again(hook_server: Server) -> None:
    with Receiver() as receiver:
        # Ended, so that no endpoint of a later test hears of it.
        plain = hook_server.wait(hook_server.create([chat_line("0")]))
        webhook = {"url": receiver.url, "secret": SECRET, "max_retries": 3, "timeout": 30, "events": ["completed"]}
        batch = hook_server.batch(hook_server.create([chat_line("0")], webhook=webhook))
        assert set(batch) == set(plain)
        assert SECRET not in json.dumps(batch) and receiver.url not in json.dumps(batch)
        # The endpoint behind it is nobody's to list or change.
        listed = hook_server.request("GET", "/v1/webhook_endpoints?limit=100")[2]["data"]
        assert receiver.url not in {endpoint["url"] for endpoint in listed}
        delivery = _ended(hook_server, batch["id"])
        endpoint_id = delivery["webhook_endpoint_id"]
        assert hook_server.request("GET", f"/v1/webhook_endpoints/{endpoint_id}")[0] == 404


def test_a_test_that_reaches_nobody_says_why(sim_server: Server) -> None:
    body = {"name": "n", "url": "https://nobody.invalid/", "event_types": ["batch.failed"]}
    made = sim_server.request("POST", "/v1/webhook_endpoints", body)[2]
    path = f"/v1/webhook_endpoints/{made['id']}/test"
    answer = sim_server.request("POST", path, {"event_type": "batch.failed"})
    assert_refused(answer, 400, code="webhook_test_failed")
    assert_refused(sim_server.request("POST", path, {}), 400, code="missing_required_parameter", param="event_type")
    assert_refused(sim_server.request("POST", path, {"event_type": "x"}), 400, code="invalid_value")


def test_a_projects_endpoint_hears_of_all_its_batches_and_of_no_others(hook_server: Server) -> None:
    with Receiver() as receiver:
        endpoint = _client(hook_server).webhooks.create(
            name="all", url=receiver.url, event_types=["batch.completed", "batch.failed"]
        )
        other = hook_server.new_key("deaf")
        mine = [hook_server.create([chat_line("0")]) for _ in range(2)]
        key, hook_server._key = hook_server._key, other
        try:
            hook_server.wait(hook_server.create([chat_line("0")]))
        finally:
            hook_server._key = key
        wait_until(lambda: len(receiver.received) == 2)
        assert {receiver.json(i)["batch_id"] for i in range(2)} == set(mine)
        _check_signed(receiver.received[0], endpoint.signing_secret)
        _client(hook_server).webhooks.delete(endpoint.id)


def test_progress_is_sent_to_those_who_ask_for_it_at_set_steps(hook_server: Server) -> None:
    with Receiver() as receiver, Receiver() as other:
        webhook = {"url": receiver.url, "secret": SECRET, "events": ["batch.progress", "cancelled"]}
        lines = [chat_line(f"{i}") for i in range(6)] + [chat_line(f"stuck-{i}", "[[sim:hang]]") for i in range(2)]
        endpoint = _client(hook_server).webhooks.create(
            name="end", url=other.url, event_types=["batch.completed", "batch.cancelled"]
        )
        batch_id = hook_server.create(lines, webhook=webhook)

        def events() -> dict[int | None, Any]:
            """Return what came, by its step; order is not promised."""
            found = [json.loads(request.body) for request in list(receiver.received)]
            by_step = {event.get("progress"): event for event in found}
            assert len(by_step) == len(found), "a step was told twice"
            return by_step

        wait_until(lambda: 75 in events())
        assert events().keys() <= {25, 50, 75}
        last = events()[75]
        assert (last["type"], last["status"], last["batch_id"]) == ("batch.progress", "in_progress", batch_id)
        assert last["request_counts"] == {"total": 8, "completed": 6, "failed": 0}
        hook_server.request("POST", f"/v1/batches/{batch_id}/cancel")
        wait_until(lambda: None in events() and other.received)
        assert events()[None]["type"] == "batch.cancelled"
        assert [other.json(i)["type"] for i in range(len(other.received))] == ["batch.cancelled"]
        _client(hook_server).webhooks.delete(endpoint.id)


def test_a_delivery_can_be_sent_again_and_shows_what_was_sent(hook_server: Server) -> None:
    with Receiver(200, status(201, body=b"thank you\0")) as receiver:
        batch_id = hook_server.create([chat_line("0")], webhook={"url": receiver.url, "secret": SECRET})
        delivery = _ended(hook_server, batch_id)
        status_, _, answer = hook_server.request("POST", f"/v1/webhook_deliveries/{delivery['id']}/redeliver")
        assert (status_, answer["status"]) == (200, "pending")
        wait_until(lambda: len(receiver.received) == 2)
        first, second = receiver.received
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == delivery["id"]
        assert first.body == second.body
        wait_until(lambda: _deliveries(hook_server, batch_id=batch_id)[0]["last_status_code"] == 201)
        detail = hook_server.request("GET", f"/v1/webhook_deliveries/{delivery['id']}")[2]
        assert detail["payload"] == json.loads(first.body)
        assert [attempt["status"] for attempt in detail["log"]] == [200, 201]
        assert detail["log"][1]["body"] == "thank you\ufffd"
        sent = {name: second.headers[name.lower()] for name in detail["log"][1]["headers"]}
        assert sent == detail["log"][1]["headers"]


def test_deliveries_are_filtered_and_paged(hook_server: Server) -> None:
    with Receiver(500, 200) as receiver:
        endpoint = _client(hook_server).webhooks.create(
            name="filters", url=receiver.url, event_types=["batch.completed"]
        )
        for kind in ("batch.completed", "batch.failed", "batch.failed"):
            _client(hook_server).webhooks.test(endpoint.id, event_type=kind)
        own = {"webhook_endpoint_id": endpoint.id}
        found = _deliveries(hook_server, **own)
        assert [row["status"] for row in found] == ["delivered", "delivered", "exhausted"]
        assert len(_deliveries(hook_server, **own, status="exhausted")) == 1
        assert len(_deliveries(hook_server, **own, event_type="batch.failed")) == 2
        assert _deliveries(hook_server, **own, after=found[0]["id"]) == found[1:]
        answer = hook_server.request("GET", "/v1/webhook_deliveries?status=lost")
        assert_refused(answer, 400, param="status", code="invalid_value")


def test_items_98_and_101_the_node_sdk_accepts_deliveries(hook_server: Server, request: pytest.FixtureRequest) -> None:
    folder = Path(request.config.cache.mkdir("sdk-node"))
    SDKS["node"](folder)
    shutil.copy(CLIENTS / "webhooks.mjs", folder / "webhooks.mjs")
    command = ["node", str(folder / "webhooks.mjs"), hook_server.base_url, hook_server.key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout)
    assert report["version"].startswith(MAJORS["node"])
    assert report["test"]["status_code"] == 200
    assert (report["event"]["type"], report["event"]["object"]) == ("batch.completed", "event")
    assert report["forged"] == {"refused": "InvalidWebhookSignatureError"}
    assert report["with_old"]["type"] == report["with_new"]["type"] == "batch.completed"


def _cluster(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        return process.environ().get("Q_CLUSTER_NAME")
    return None


def test_a_cluster_killed_in_the_middle_of_an_attempt_delivers_the_same_event(new_home: Path) -> None:
    settings = {"VBATCH_WEBHOOK_ALLOW_PRIVATE": "on", "VBATCH_WEBHOOK_TIMEOUT": "4"}
    with Server(new_home, **settings) as server, Receiver() as receiver:
        receiver.behaviours = [receiver.hang, 200]
        batch_id = server.create([chat_line("0")], webhook={"url": receiver.url, "secret": SECRET})
        wait_until(lambda: receiver.received)
        # A process that gave itself a title has written it over its environment.
        tops = [p for p in server.tree() if _cluster(p) == "default"]
        doomed = {process for top in tops for process in (top, *top.children(recursive=True))}
        assert len(doomed) > 4
        for process in doomed:
            # It may have ended with the one that was killed before it.
            with suppress(psutil.NoSuchProcess):
                process.kill()
        assert _deliveries(server, batch_id=batch_id)[0]["status"] == "pending"
        delivery = _ended(server, batch_id)
        assert (delivery["status"], delivery["attempts"]) == ("delivered", 2)
        first, second = receiver.received
        assert first.body == second.body and json.loads(first.body)["id"] == delivery["event_id"]
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == delivery["id"]
        _check_signed(second, SECRET)
        assert server.query("SELECT count(*) FROM batches_webhookdelivery") == [(1,)]
