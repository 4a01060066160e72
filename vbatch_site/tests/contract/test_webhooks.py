"""Items 98 to 102: webhooks, as receivers see them."""

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from standardwebhooks.webhooks import Webhook

from vbatch_site.tests.receiver import Received, Receiver, status
from vbatch_site.tests.servers import Server, chat_line, wait_until

SECRET = "a secret of the user's own"


@pytest.fixture(scope="module")
def hook_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that delivers to this machine, gives receivers a second, and tries again soon."""
    settings = {
        "VBATCH_WEBHOOK_ALLOW_PRIVATE": "on",
        "VBATCH_WEBHOOK_TIMEOUT": "1",
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
            assert abs(int(request.headers["webhook-timestamp"]) - request.at) < 3
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
        assert "no answer within 1 s" in detail["log"][1]["error"]
        assert not elsewhere.received
        assert len(receiver.received) == 4
