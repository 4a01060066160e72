"""What the simulated engine answers on each endpoint: vLLM's shapes."""

import base64
import http.client
import json
import math
import re
import struct
import time

import pytest

from workers.tests.simulated import KEY, MODEL, PATIENCE_SECONDS, Sim, chat_body, events, serving

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
