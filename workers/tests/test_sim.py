"""The simulated engine, as a process: what it promises to the tests and measurements that lean on it."""

import base64
import http.client
import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import workers.sim

ROOT = Path(__file__).resolve().parents[2]
KEY = "sim-test-key"
MODEL = "sim-model"
# Generous: a busy machine starts Python slowly. Nothing waits that long when all is well.
PATIENCE_SECONDS = 20


class Reply:
    def __init__(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
        self.status = status
        self.raw = raw
        self.headers = headers

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


class Sim:
    """A running server and the shortest way to talk to it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def request(self, method: str, path: str, body: object = None, *, key: str | None = KEY) -> Reply:
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if raw is not None else {}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, raw, headers)
            response = connection.getresponse()
            return Reply(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, path: str, body: object) -> Reply:
        return self.request("POST", path, body)

    def chat(self, text: str, **fields: object) -> Reply:
        return self.post("/v1/chat/completions", chat_body(text, **fields))

    def stats(self) -> dict[str, int]:
        stats: dict[str, int] = self.get("/sim/stats").json
        return stats

    def open_chat(self, text: str, **fields: object) -> socket.socket:
        """Send a chat and leave the connection open, the answer unread."""
        raw = json.dumps(chat_body(text, **fields)).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: sim\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
        )
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)
        connection.sendall(head.encode() + raw)
        return connection


def chat_body(text: str, **fields: object) -> dict[str, object]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **fields}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def command(port: int, *arguments: str) -> list[str]:
    start = [sys.executable, "-m", "workers.sim", "--host", "127.0.0.1", "--port", str(port)]
    return [*start, "--model", "org/sim", "--served-model-name", MODEL, *arguments]


def environment(**knobs: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("VBATCH_SIM_", "VLLM_"))}
    return {**kept, "VLLM_API_KEY": KEY, **knobs}


@contextmanager
def serving(*arguments: str, wait: bool = True, **knobs: str) -> Iterator[Sim]:
    port = free_port()
    process = subprocess.Popen(command(port, *arguments), cwd=ROOT, env=environment(**knobs), stderr=subprocess.DEVNULL)
    sim = Sim(process, port)

    def is_up() -> bool:
        assert process.poll() is None, f"it ended with {process.returncode}"
        try:
            return sim.get("/health").status == 200 or not wait
        except ConnectionError:
            return False

    try:
        until(is_up)
        yield sim
    finally:
        process.kill()
        process.wait()


def run_to_its_end(**knobs: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(free_port()),
        cwd=ROOT,
        env=environment(**knobs),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    """Serve without any knob; tests that need one start their own."""
    with serving("--enforce-eager", "--gpu-memory-utilization", "0.5", "--lora-modules", "poet=/adapters/poet") as sim:
        yield sim


def events(reply: Reply) -> list[str]:
    return [line.removeprefix("data: ") for line in reply.raw.decode().split("\n") if line.startswith("data: ")]


# Who is let in, and what is there


def test_health_needs_no_key_and_has_no_body(sim: Sim) -> None:
    reply = sim.request("GET", "/health", key=None)
    assert (reply.status, reply.raw) == (200, b"")


@pytest.mark.parametrize("key", [None, "wrong", KEY + "x"])
def test_v1_without_the_right_key_is_401_as_vllm_words_it(sim: Sim, key: str | None) -> None:
    reply = sim.request("POST", "/v1/chat/completions", chat_body("hello"), key=key)
    assert (reply.status, reply.json) == (401, {"error": "Unauthorized"})


def test_the_key_may_come_as_an_argument_and_goes_before_the_environment() -> None:
    with serving("--api-key", "other") as sim:
        assert sim.request("GET", "/v1/models", key="other").status == 200
        assert sim.request("GET", "/v1/models", key=KEY).status == 401


def test_models_lists_the_served_name_and_the_adapters(sim: Sim) -> None:
    cards = {card["id"]: card for card in sim.get("/v1/models").json["data"]}
    assert set(cards) == {MODEL, "poet"}
    assert (cards[MODEL]["root"], cards[MODEL]["owned_by"]) == ("org/sim", "vllm")
    assert cards["poet"]["parent"] == MODEL


def test_the_version_says_that_it_is_simulated(sim: Sim) -> None:
    assert "sim" in sim.get("/version").json["version"]


def test_unknown_routes_and_methods_get_fastapis_words(sim: Sim) -> None:
    assert sim.get("/v1/nothing").json["error"] == {
        "message": "Not Found",
        "type": "Not Found",
        "param": None,
        "code": 404,
    }
    assert sim.get("/v1/chat/completions").status == 405
    assert sim.post("/health", {}).status == 405


# Chat


def test_a_chat_is_answered_in_vllms_shape_with_an_echo_of_the_last_user_text(sim: Sim) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": [{"type": "text", "text": "second"}, {"type": "image_url", "image_url": {}}]},
    ]
    reply = sim.post("/v1/chat/completions", {"model": MODEL, "messages": messages})
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    answer = reply.json
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["object"], answer["model"]) == ("chat.completion", MODEL)
    assert abs(answer["created"] - time.time()) < 60
    (choice,) = answer["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert (choice["message"]["role"], choice["message"]["content"]) == ("assistant", "echo: second")
    usage = answer["usage"]
    assert usage["completion_tokens"] == 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + 3
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_every_answer_says_that_it_is_simulated(sim: Sim) -> None:
    assert sim.chat("hello").json["system_fingerprint"] == "vllm-sim"


def test_the_echo_has_at_most_200_characters(sim: Sim) -> None:
    assert sim.chat("x" * 500).json["choices"][0]["message"]["content"] == "echo: " + "x" * 200


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_a_text_longer_than_max_tokens_is_cut(sim: Sim, field: str) -> None:
    answer = sim.chat("a long enough text", **{field: 3}).json
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("echo: a long", "length")
    assert answer["usage"]["completion_tokens"] == 3


def test_ignore_eos_fills_the_answer_up_to_max_tokens(sim: Sim) -> None:
    answer = sim.chat("hello", max_tokens=100, ignore_eos=True).json
    (choice,) = answer["choices"]
    assert (len(choice["message"]["content"]), choice["finish_reason"]) == (400, "length")
    assert answer["usage"]["completion_tokens"] == 100


def test_each_of_n_choices_is_answered_and_counted(sim: Sim) -> None:
    answer = sim.chat("hello", n=3).json
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 9


def test_the_request_id_is_the_clients_where_it_sends_one(sim: Sim) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", sim.port, timeout=PATIENCE_SECONDS)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", "X-Request-Id": "mine"}
    connection.request("POST", "/v1/chat/completions", json.dumps(chat_body("hello")), headers)
    assert json.loads(connection.getresponse().read())["id"] == "chatcmpl-mine"
    connection.close()


def test_an_adapter_is_answered_under_its_own_name(sim: Sim) -> None:
    assert sim.chat("hello", model="poet").json["model"] == "poet"


def test_a_streamed_chat_has_the_same_text_and_ends_with_done(sim: Sim) -> None:
    reply = sim.chat("hello there", stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(reply)
    assert last == "[DONE]"
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in choices) == "echo: hello there"
    assert choices[-1]["finish_reason"] == "stop"
    assert "usage" not in json.loads(chunks[-1])


def test_a_stream_ends_with_its_usage_where_that_was_asked_for(sim: Sim) -> None:
    *_, usage, _ = events(sim.chat("hello", stream=True, stream_options={"include_usage": True}))
    assert json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"]["completion_tokens"] == 3


def test_a_prompt_seen_before_is_cached(sim: Sim) -> None:
    text = "a shared beginning " * 100
    assert sim.chat(text + "one").json["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    usage = sim.chat(text + "two").json["usage"]
    assert usage["prompt_tokens"] - 64 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]


# The other endpoints


def test_a_completion_stops_after_sixteen_tokens_unless_told_otherwise(sim: Sim) -> None:
    answer = sim.post("/v1/completions", {"model": MODEL, "prompt": "x" * 100}).json
    assert answer["id"].startswith("cmpl-")
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("echo: " + "x" * 58, "length")
    assert answer["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        (["one", "two"], ["echo: one", "echo: two"]),
        ([1, 2, 3], ["echo: 1 2 3"]),
        ([[1, 2], [3]], ["echo: 1 2", "echo: 3"]),
    ],
)
def test_a_completion_takes_every_shape_of_prompt(sim: Sim, prompt: object, texts: list[str]) -> None:
    answer = sim.post("/v1/completions", {"model": MODEL, "prompt": prompt}).json
    assert [choice["text"] for choice in answer["choices"]] == texts


def test_a_streamed_completion_has_the_same_text(sim: Sim) -> None:
    *chunks, last = events(sim.post("/v1/completions", {"model": MODEL, "prompt": "hello", "stream": True}))
    assert last == "[DONE]"
    assert "".join(json.loads(chunk)["choices"][0]["text"] for chunk in chunks) == "echo: hello"


def test_a_response_carries_its_text_and_usage(sim: Sim) -> None:
    items = [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]
    for given in ("hello", items):
        answer = sim.post("/v1/responses", {"model": MODEL, "input": given}).json
        assert (answer["object"], answer["status"]) == ("response", "completed")
        assert answer["output"][0]["content"][0]["text"] == "echo: hello"
        assert answer["usage"]["output_tokens"] == 3


def test_a_response_that_is_cut_is_incomplete(sim: Sim) -> None:
    answer = sim.post("/v1/responses", {"model": MODEL, "input": "hello", "max_output_tokens": 1}).json
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_a_streamed_response_ends_with_the_whole_of_it(sim: Sim) -> None:
    chunks = [
        json.loads(chunk)
        for chunk in events(sim.post("/v1/responses", {"model": MODEL, "input": "hello", "stream": True}))
    ]
    assert [chunk["sequence_number"] for chunk in chunks] == list(range(len(chunks)))
    assert "".join(chunk["delta"] for chunk in chunks if chunk["type"].endswith("text.delta")) == "echo: hello"
    assert chunks[-1]["response"]["output"][0]["content"][0]["text"] == "echo: hello"


def test_embeddings_are_unit_vectors_that_depend_on_the_text_alone(sim: Sim) -> None:
    def embed(given: object) -> list[list[float]]:
        reply = sim.post("/v1/embeddings", {"model": MODEL, "input": given})
        return [row["embedding"] for row in reply.json["data"]]

    (alone,) = embed("one")
    together = embed(["one", "two"])
    assert together[0] == alone != together[1]
    assert [len(vector) for vector in together] == [8, 8]
    assert all(math.isclose(math.hypot(*vector), 1) for vector in together)
    assert embed([7, 8]) == embed([[7, 8]])


def test_base64_embeddings_are_the_same_numbers(sim: Sim) -> None:
    body = {"model": MODEL, "input": "one"}
    plain = sim.post("/v1/embeddings", body).json["data"][0]["embedding"]
    packed = sim.post("/v1/embeddings", {**body, "encoding_format": "base64"}).json["data"][0]["embedding"]
    assert struct.unpack("<8f", base64.b64decode(packed)) == pytest.approx(plain, abs=1e-6)


def test_score_pairs_one_with_many_and_gives_one_for_the_same_text(sim: Sim) -> None:
    answer = sim.post("/v1/score", {"model": MODEL, "text_1": "a", "text_2": ["a", "b"]}).json
    scores = [row["score"] for row in answer["data"]]
    assert scores[0] == pytest.approx(1)
    assert 0 <= scores[1] < 1


def test_score_refuses_sides_that_do_not_pair(sim: Sim) -> None:
    assert sim.post("/v1/score", {"model": MODEL, "text_1": ["a", "b"], "text_2": ["a"]}).status == 400


def test_rerank_gives_the_nearest_first_and_at_most_top_n(sim: Sim) -> None:
    body = {"model": MODEL, "query": "b", "documents": ["a", "b", "c"], "top_n": 2}
    results = sim.post("/v1/rerank", body).json["results"]
    assert len(results) == 2
    assert (results[0]["index"], results[0]["document"]["text"]) == (1, "b")
    assert results[0]["relevance_score"] >= results[1]["relevance_score"]


def test_tokenize_counts_four_characters_a_token(sim: Sim) -> None:
    answer = sim.post("/tokenize", {"model": MODEL, "prompt": "ten letter", "return_token_strs": True}).json
    assert (answer["count"], answer["token_strs"]) == (3, ["ten ", "lett", "er"])
    assert len(answer["tokens"]) == 3


def test_metrics_have_vllms_names_and_the_models_label(sim: Sim) -> None:
    text = sim.get("/metrics").raw.decode()
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "num_preemptions_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "prompt_tokens_total",
        "generation_tokens_total",
    ):
        assert re.search(rf'^vllm:{name}{{[^}}]*model_name="{MODEL}"}} [0-9.]+$', text, re.M), name


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


# Knobs


def test_the_failure_rate_fails_in_the_same_places_and_a_retry_can_succeed() -> None:
    def statuses(sim: Sim) -> list[int]:
        return [sim.chat(f"line {number}").status for number in range(60)]

    with serving(VBATCH_SIM_FAILURE_RATE="0.5") as sim:
        first, second = statuses(sim), statuses(sim)
        assert sim.stats()["failed"] == (first + second).count(500)
    assert 15 <= first.count(500) <= 45
    again = [second[number] for number, status in enumerate(first) if status == 500]
    assert {200, 500} == set(again)
    with serving(VBATCH_SIM_FAILURE_RATE="0.5") as sim:
        assert statuses(sim) == first


def test_latency_and_decode_speed_add_up() -> None:
    with serving(VBATCH_SIM_LATENCY_MS="100", VBATCH_SIM_TOKENS_PER_SECOND="50") as sim:
        start = time.monotonic()
        sim.chat("hello", max_tokens=16, ignore_eos=True)
        # 100 ms to the first token, then 15 of 20 ms each.
        assert 0.4 <= time.monotonic() - start < 2


def test_a_stream_comes_at_the_decode_speed() -> None:
    with serving(VBATCH_SIM_TOKENS_PER_SECOND="50") as sim:
        start = time.monotonic()
        connection = sim.open_chat("hello", stream=True, max_tokens=20, ignore_eos=True)
        with connection, connection.makefile("rb") as stream:
            arrivals = []
            for line in stream:
                if b"data: " in line:
                    arrivals.append(time.monotonic() - start)
                if b"[DONE]" in line:
                    break
    assert arrivals[-1] >= 0.38
    assert arrivals[0] < arrivals[-1] / 2


def test_lines_per_second_bound_the_whole_server() -> None:
    with serving(VBATCH_SIM_LINES_PER_SECOND="50") as sim:
        start = time.monotonic()
        connections = [sim.open_chat(f"line {number}") for number in range(26)]
        for connection in connections:
            assert connection.recv(15).endswith(b"200 OK")
        # The first needs no wait; 25 more at 20 ms.
        assert 0.5 <= time.monotonic() - start < 3
        for connection in connections:
            connection.close()


def test_concurrency_bounds_what_is_worked_on_and_the_rest_waits() -> None:
    with serving(VBATCH_SIM_CONCURRENCY="2", VBATCH_SIM_LATENCY_MS="50") as sim:
        connections = [sim.open_chat(f"line {number}") for number in range(8)]
        until(lambda: sim.stats()["waiting"] > 0)
        for connection in connections:
            assert connection.recv(15).endswith(b"200 OK")
            connection.close()
        until(lambda: sim.stats()["running"] == 0)
        stats = sim.stats()
    assert (stats["completed"], stats["max_running"], stats["waiting"]) == (8, 2, 0)


def test_one_who_leaves_the_line_is_dropped_and_takes_no_place() -> None:
    with serving(VBATCH_SIM_CONCURRENCY="1") as sim:
        first = sim.open_chat("[[sim:hang]]")
        until(lambda: sim.stats()["running"] == 1)
        second = sim.open_chat("impatient")
        until(lambda: sim.stats()["waiting"] == 1)
        second.close()
        until(lambda: sim.stats()["aborted"] == 1)
        assert sim.stats()["waiting"] == 0
        first.close()
        assert sim.chat("hello").status == 200
        assert sim.stats()["aborted"] == 2


@pytest.mark.parametrize(("policy", "order"), [("priority", ["live", "batch"]), ("fcfs", ["batch", "live"])])
def test_a_lower_priority_number_goes_first_under_the_priority_policy_only(policy: str, order: list[str]) -> None:
    finished: list[str] = []

    def chat(sim: Sim, name: str, priority: int) -> None:
        sim.chat(f"{name} [[sim:slow:0.2]]", priority=priority)
        finished.append(name)

    with serving("--scheduling-policy", policy, VBATCH_SIM_CONCURRENCY="1") as sim:
        blocker = sim.open_chat("[[sim:hang]]")
        until(lambda: sim.stats()["running"] == 1)
        batch = threading.Thread(target=chat, args=(sim, "batch", 10))
        live = threading.Thread(target=chat, args=(sim, "live", 0))
        batch.start()
        until(lambda: sim.stats()["waiting"] == 1)
        live.start()
        until(lambda: sim.stats()["waiting"] == 2)
        blocker.close()
        batch.join(PATIENCE_SECONDS)
        live.join(PATIENCE_SECONDS)
    assert finished == order


def test_a_sleeping_server_answers_once_it_is_woken(sim: Sim) -> None:
    assert sim.post("/sleep?level=1", b"").json == {"status": "sleeping", "level": 1}
    assert sim.get("/is_sleeping").json == {"is_sleeping": True}
    with sim.open_chat("hello") as connection:
        until(lambda: sim.stats()["waiting"] == 1)
        assert sim.post("/wake_up", b"").json["status"] == "awake"
        assert connection.recv(15).endswith(b"200 OK")
    assert sim.get("/is_sleeping").json == {"is_sleeping": False}


def test_the_request_log_has_the_user_text_of_each_request_taken(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with serving(VBATCH_SIM_REQUEST_LOG=str(log)) as sim:
        sim.chat("two\nlines")
        sim.chat("refused", max_tokens=0)
        sim.chat("a failure is taken too [[sim:500]]")
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            sim.chat("and so is a [[sim:crash]]")
    with serving(VBATCH_SIM_REQUEST_LOG=str(log)) as sim:
        sim.post("/v1/embeddings", {"model": MODEL, "input": ["one", "two"]})
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        "two\nlines",
        "a failure is taken too [[sim:500]]",
        "and so is a [[sim:crash]]",
        "one\ntwo",
    ]


def test_every_route_is_503_until_the_server_has_started() -> None:
    with serving(wait=False, VBATCH_SIM_STARTUP="1.5") as sim:
        assert sim.get("/health").status == 503
        assert sim.chat("hello").status == 503
        until(lambda: sim.get("/health").status == 200)
        assert sim.chat("hello").status == 200


def test_a_failed_start_prints_an_error_like_vllms_and_exits_with_1() -> None:
    ended = run_to_its_end(VBATCH_SIM_STARTUP_FAIL="1")
    assert ended.returncode == 1
    assert "Engine core initialization failed" in ended.stderr


@pytest.mark.parametrize("value", ["fast", "-1", "nan"])
def test_a_knob_that_is_no_number_in_range_stops_the_start(value: str) -> None:
    ended = run_to_its_end(VBATCH_SIM_LATENCY_MS=value)
    assert ended.returncode == 2
    assert "VBATCH_SIM_LATENCY_MS" in ended.stderr


def test_sigterm_stops_it_within_a_second_whatever_is_in_flight() -> None:
    with serving() as sim, sim.open_chat("[[sim:hang]]") as connection:
        until(lambda: sim.stats()["running"] == 1)
        sim.process.send_signal(signal.SIGTERM)
        assert sim.process.wait(1) == 0
        # Closed without an answer: nobody may take the end of the engine for the result of a request.
        try:
            assert connection.recv(100) == b""
        except ConnectionError:
            pass


# The program itself


def test_it_does_not_import_django() -> None:
    script = "import sys, workers.sim.__main__; sys.exit('django' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_every_variable_and_marker_is_documented() -> None:
    package = ROOT / "workers" / "sim"
    documented = workers.sim.__doc__ or ""
    variables = set(re.findall(r"VBATCH_SIM_[A-Z_]+[A-Z]", (package / "knobs.py").read_text()))
    assert len(variables) == 10
    for name in variables:
        assert name in documented
    for marker in ("crash", "hang", "slow", "400", "500", "503once", "garbage", "truncate", "200error"):
        assert f"[[sim:{marker}" in documented
