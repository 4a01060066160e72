"""What the simulated engine refuses, and the faults that a prompt can order."""

import http.client
import json
import time

import pytest

from workers.tests.simulated import PATIENCE_SECONDS, Sim, serving, until

# What is refused


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_tokens"),
        ({"max_tokens": "many"}, "body.max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "warm"}, "body.temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"messages": "hello"}, "body.messages"),
        ({"messages": [{"content": "no role"}]}, "body.messages.0.role"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "body.messages"),
    ],
)
def test_a_bad_chat_is_400_in_vllms_envelope(sim: Sim, fields: dict[str, object], param: str) -> None:
    reply = sim.chat("hello", **fields)
    assert reply.status == 400
    error = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (400, param)


@pytest.mark.parametrize("raw", [b"", b"not JSON", b"[]", b'"text"', b"3", b"null", b"{}", b'{"messages": [', b"\xff"])
def test_a_body_that_is_no_request_is_400(sim: Sim, raw: bytes) -> None:
    reply = sim.post("/v1/chat/completions", raw)
    assert (reply.status, reply.json["error"]["type"]) == (400, "Bad Request")


def test_an_unknown_model_is_404_in_vllms_words(sim: Sim) -> None:
    reply = sim.chat("hello", model="stranger")
    assert reply.status == 404
    error = reply.json["error"]
    assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "model", 404)
    assert "The model `stranger` does not exist." in error["message"]


def test_a_prompt_longer_than_the_model_allows_is_400() -> None:
    with serving("--max-model-len", "50") as sim:
        assert sim.chat("x" * 100).status == 200
        reply = sim.chat("x" * 400)
        assert (reply.status, reply.json["error"]["type"]) == (400, "BadRequestError")
        assert "maximum context length is 50 tokens" in reply.json["error"]["message"]
        assert sim.chat("x" * 195).json["error"]["message"].startswith("The decoder prompt (length 50) plus")
        assert sim.chat("x", max_tokens=51).json["error"]["param"] == "max_tokens"
        # What does not fit beside the prompt is not generated.
        short = sim.chat("x" * 100, max_tokens=40).json
        assert (short["usage"]["completion_tokens"], short["choices"][0]["finish_reason"]) == (23, "length")
        assert sim.get("/v1/models").json["data"][0]["max_model_len"] == 50


# Markers


def test_a_prompt_with_the_crash_marker_ends_the_process() -> None:
    with serving() as sim:
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            sim.chat("please [[sim:crash]]")
        assert sim.process.wait(PATIENCE_SECONDS) == 139


def test_a_prompt_with_the_hang_marker_is_dropped_when_its_client_goes_away(sim: Sim) -> None:
    before = sim.stats()
    connection = sim.open_chat("[[sim:hang]]")
    until(lambda: sim.stats()["running"] == before["running"] + 1)
    connection.settimeout(0.2)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    connection.close()
    until(lambda: sim.stats()["aborted"] == before["aborted"] + 1)
    assert sim.stats()["running"] == before["running"]


@pytest.mark.parametrize("status", [400, 500])
def test_a_prompt_can_order_an_error(sim: Sim, status: int) -> None:
    reply = sim.chat(f"[[sim:{status}]]")
    assert (reply.status, reply.json["error"]["code"]) == (status, status)


def test_a_marker_works_in_every_endpoint_and_in_any_text(sim: Sim) -> None:
    messages = [{"role": "system", "content": "[[sim:500]]"}, {"role": "user", "content": "hello"}]
    assert sim.post("/v1/chat/completions", {"messages": messages}).status == 500
    assert sim.post("/v1/completions", {"prompt": "[[sim:500]]"}).status == 500
    assert sim.post("/v1/responses", {"input": "[[sim:500]]"}).status == 500
    assert sim.post("/v1/embeddings", {"input": ["[[sim:500]]"]}).status == 500
    assert sim.post("/v1/score", {"text_1": "a", "text_2": "[[sim:500]]"}).status == 500
    assert sim.post("/v1/rerank", {"query": "a", "documents": ["[[sim:500]]"]}).status == 500


def test_the_slow_marker_delays_its_own_request(sim: Sim) -> None:
    start = time.monotonic()
    assert sim.chat("[[sim:slow:0.3]]").status == 200
    assert time.monotonic() - start >= 0.3


def test_the_garbage_marker_answers_200_with_no_json(sim: Sim) -> None:
    reply = sim.chat("[[sim:garbage]]")
    assert reply.status == 200
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(reply.raw)


@pytest.mark.parametrize("stream", [False, True])
def test_the_truncate_marker_breaks_off_the_body(sim: Sim, stream: bool) -> None:
    with pytest.raises(http.client.IncompleteRead):
        sim.chat("[[sim:truncate]]", stream=stream)


def test_the_200error_marker_answers_200_with_an_error(sim: Sim) -> None:
    reply = sim.chat("[[sim:200error]]")
    assert (reply.status, reply.json["error"]["code"]) == (200, 500)


def test_the_503once_marker_fails_the_first_time_only(sim: Sim) -> None:
    assert [sim.chat("[[sim:503once]] a text of its own").status for _ in range(2)] == [503, 200]
