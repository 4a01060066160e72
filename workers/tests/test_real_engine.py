"""The whole way with real vLLM on the CPU, driven by the official OpenAI SDK over HTTP."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from vbatch_site.tests.servers import EMBEDDING_MODEL, MODEL, ROOT, TERMINAL, Server, chat_line
from workers import samples

pytestmark = pytest.mark.slow

# Eager mode starts in a third of the time; what is tested here does not depend on it.
ENGINE = {
    "VBATCH_ENGINE": "vllm",
    "VBATCH_VLLM_ARGS": "--enforce-eager --max-model-len 1024 --max-num-seqs 32",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "HF_HUB_OFFLINE": "1",
}
TEXT = "Name three animals that live in the sea."
LOAD = 300  # seconds; a load takes 25 to 40 here when nothing else runs


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a home with the sample models, those of `make setup` if they are there."""
    home = ROOT / "var"
    if not (home / "models").is_dir():
        home = tmp_path_factory.mktemp("models")
    samples.prepare(home)
    return home


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the real engine."""
    home = tmp_path_factory.mktemp("real")
    os.symlink(models / "models", home / "models")
    with Server(home, **ENGINE) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> OpenAI:
    """The official SDK, pointed at it."""
    return OpenAI(base_url=server.base_url, api_key=server.key)


def _run(client: OpenAI, content: str, endpoint: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Return the ended batch and its output and error lines by custom_id."""
    file = client.files.create(file=("in.jsonl", content.encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
    deadline = time.monotonic() + LOAD
    while batch.status not in TERMINAL:
        assert time.monotonic() < deadline, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)

    def lines(file_id: str | None) -> dict[str, Any]:
        if file_id is None:
            return {}
        found = [json.loads(line) for line in client.files.content(file_id).text.splitlines()]
        assert len({line["custom_id"] for line in found}) == len(found)
        return {line["custom_id"]: line for line in found}

    return batch, lines(batch.output_file_id), lines(batch.error_file_id)


def _body(line: dict[str, Any]) -> dict[str, Any]:
    assert line["response"]["status_code"] == 200
    return dict(line["response"]["body"])


def _text(line: dict[str, Any]) -> str:
    return str(_body(line)["choices"][0]["message"]["content"])


def _check_preflight(server: Server, content: str, output: dict[str, Any], field: str) -> None:
    """Hold what a preflight says of lines against what their engine counted."""
    wanted = {"input_file_id": server.upload(content)}
    report = server.request("POST", "/v1/batches/preflight", wanted)[2]
    counted = sum(_body(line)["usage"][field] for line in output.values())
    assert report["models"][0]["prompt_tokens"] == counted


def test_a_chat_batch_then_an_embeddings_batch_then_chat_again_run_on_one_slot(client: OpenAI, server: Server) -> None:
    chat = "".join(chat_line(f"chat-{i}", f"What is {i} plus {i}?", max_tokens=12, temperature=0) for i in range(12))
    batch, output, errors = _run(client, chat, "/v1/chat/completions")
    assert (batch.status, len(output), errors) == ("completed", 12, {})
    assert batch.model == MODEL
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(_body(line)["usage"]["completion_tokens"] for line in output.values())
    assert all(_text(line) for line in output.values())

    texts = ["a cat sat", "a kitten sat", "interest rates rose", "one two " * 50]
    lines = [
        {
            "custom_id": f"e{i}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": EMBEDDING_MODEL, "input": text},
        }
        for i, text in enumerate(texts)
    ]
    batch, output, errors = _run(client, "\n".join(map(json.dumps, lines)), "/v1/embeddings")
    assert (batch.status, len(output), errors) == ("completed", 4, {})
    near, nearer, far = (_body(output[f"e{i}"])["data"][0]["embedding"] for i in range(3))
    # Here, while this model is loaded; the chat model's are below.
    _check_preflight(server, "\n".join(map(json.dumps, lines)), output, "prompt_tokens")

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert len(near) == 384
    assert dot(near, nearer) > dot(near, far) + 0.3

    query = {"model": EMBEDDING_MODEL, "query": "pets", "documents": texts}
    pairs = {"model": EMBEDDING_MODEL, "text_1": texts[0], "text_2": texts[1:]}
    for url, body in (("/v1/rerank", query), ("/v1/score", pairs)):
        line = json.dumps({"custom_id": url, "method": "POST", "url": url, "body": body})
        batch, output, errors = _run(client, line, url)
        assert (batch.status, errors) == ("completed", {})
        assert _body(output[url]).get("results") or _body(output[url]).get("data")

    batch, output, _ = _run(client, chat_line("again", TEXT), "/v1/chat/completions")
    assert batch.status == "completed"
    loads = server.query(
        "SELECT m.name FROM workers_service s JOIN workers_servedmodel m ON m.id = s.model_id ORDER BY s.id"
    )
    assert [name for (name,) in loads] == [MODEL, EMBEDDING_MODEL, MODEL]
    seconds = server.query("SELECT load_seconds FROM workers_servedmodel WHERE name = %s", MODEL)[0][0]
    assert seconds > 1


SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"type": "string", "maxLength": 12},
        "legs": {"type": "integer", "maximum": 8, "minimum": 0},
    },
    "required": ["animal", "legs"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Look up an animal", "parameters": SCHEMA}}


def test_a_request_is_honoured_as_it_was_written(client: OpenAI, models: Path) -> None:
    def line(custom_id: str, **body: Any) -> str:
        return chat_line(custom_id, TEXT, **{"temperature": 0, "max_tokens": 24, **body})

    first = [
        line("base"),
        line("base-again"),
        line("short", max_tokens=3),
        line("warm-1", temperature=1.5, seed=1, max_tokens=24),
        line("warm-1-again", temperature=1.5, seed=1, max_tokens=24),
        line("warm-2", temperature=1.5, seed=2, max_tokens=24),
        line("three", temperature=1.0, n=3),
        line("logprobs", logprobs=True, top_logprobs=2, max_tokens=4),
        line(
            "schema",
            max_tokens=60,
            response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
        ),
        line("tool", max_tokens=60, tools=[TOOL], tool_choice={"type": "function", "function": {"name": "look_up"}}),
        line("too-long", max_tokens=100_000),
        line("bad", temperature=-1),
    ]
    batch, output, errors = _run(client, "".join(first), "/v1/chat/completions")
    assert batch.status == "completed"
    assert set(errors) == {"too-long", "bad"}, errors
    for refused in errors.values():
        assert refused["error"] is None
        assert refused["response"]["status_code"] == 400
        assert set(refused["response"]["body"]["error"]) == {"message", "type", "param", "code"}

    base = _text(output["base"])
    assert _text(output["base-again"]) == base
    assert _body(output["short"])["usage"]["completion_tokens"] == 3
    assert _body(output["short"])["choices"][0]["finish_reason"] == "length"
    assert base.startswith(_text(output["short"]))
    assert _text(output["warm-1"]) == _text(output["warm-1-again"])
    assert len({base, _text(output["warm-1"]), _text(output["warm-2"])}) == 3
    assert len(_body(output["three"])["choices"]) == 3
    tokens = _body(output["logprobs"])["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * 4
    animal = json.loads(_text(output["schema"]))
    assert set(animal) == {"animal", "legs"}
    assert isinstance(animal["legs"], int)
    call = _body(output["tool"])["choices"][0]["message"]["tool_calls"][0]["function"]
    # What a model of this size puts into the arguments is its own affair; without the tool it answers in prose.
    assert call["name"] == "look_up"
    assert not _body(output["base"])["choices"][0]["message"].get("tool_calls")

    # The model's own chat template was applied: it adds a system prompt of its own.
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(samples.path_of(MODEL, models))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXT}], add_generation_prompt=True, tokenize=False
    )
    expected = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    assert _body(output["base"])["usage"]["prompt_tokens"] == expected

    stop = base.split()[4]
    # Some 300 tokens that two lines have in common: the engine's own report of what it found in its cache is shown.
    letter = "Dear reader, the sea is wide and deep and full of fish. " * 20
    shared = [
        chat_line(f"shared-{i}", f"{letter}{question}", max_tokens=2) for i, question in enumerate(("Who?", "Why?"))
    ]
    content = line("stopped", stop=[stop]) + "".join(shared)
    batch, output, _ = _run(client, content, "/v1/chat/completions")
    assert (batch.model_extra or {})["vbatch"]["prefix_cache_hit_rate"] > 0.2
    assert _text(output["stopped"]) == base[: base.index(stop)]
    assert _body(output["stopped"])["choices"][0]["finish_reason"] == "stop"


def test_completions_and_responses_are_answered(client: OpenAI) -> None:
    def line(url: str, **body: Any) -> str:
        return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": {"model": MODEL, **body}})

    _, output, errors = _run(
        client, line("/v1/completions", prompt="The capital of France is", max_tokens=4), "/v1/completions"
    )
    assert not errors
    assert _body(output["a"])["choices"][0]["text"]
    _, output, errors = _run(client, line("/v1/responses", input="Say hi.", max_output_tokens=8), "/v1/responses")
    assert not errors
    body = _body(output["a"])
    assert body["object"] == "response"
    assert body["usage"]["output_tokens"] > 0


def test_a_cancelled_batch_stops_within_seconds_and_keeps_what_finished(client: OpenAI, server: Server) -> None:
    content = "".join(
        chat_line(f"l{i}", f"Tell a long story about the number {i}.", max_tokens=200) for i in range(300)
    )
    batch_id = server.create(content)
    deadline = time.monotonic() + LOAD
    while server.batch(batch_id)["request_counts"]["completed"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    client.batches.cancel(batch_id)
    asked = time.monotonic()
    batch = server.wait(batch_id)
    # By itself it would go on for minutes; what the engine is at takes both cores meanwhile.
    assert time.monotonic() - asked < 20
    output, errors = server.lines(batch)
    assert batch["status"] == "cancelled"
    assert len(output) == batch["request_counts"]["completed"] > 0
    assert len(output) + len(errors) == 300
    assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}


def test_preflight_counts_the_tokens_that_the_engine_counts_and_names_the_lines_that_it_refuses(
    client: OpenAI, server: Server
) -> None:
    texts = [TEXT, "digits 1234567890", "\u8981\u6c42 \U0001f600", "tab\tand\n\nlines", "word " * 400, "<|im_end|>"]
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    developer = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": TEXT}]
    lines = [chat_line(f"text-{i}", text, max_tokens=1) for i, text in enumerate(texts)]
    lines.append(chat_line("parts", max_tokens=1, messages=[{"role": "user", "content": parts}]))
    lines.append(chat_line("developer", max_tokens=1, messages=developer))
    too_long = [chat_line("prompt", "word " * 1100), chat_line("answer", max_tokens=1025)]
    file_id = server.upload("".join(lines + too_long))
    status, _, report = server.request("POST", "/v1/batches/preflight", {"input_file_id": file_id})
    assert status == 200, report
    (model,) = report["models"]
    assert [line["custom_id"] for line in model["too_long"]["data"]] == ["prompt", "answer"]
    alone = server.request("POST", "/v1/batches/preflight", {"input_file_id": server.upload("".join(lines))})[2]
    batch, output, errors = _run(client, "".join(lines + too_long), "/v1/chat/completions")
    counted = sum(_body(line)["usage"]["prompt_tokens"] for line in output.values())
    assert (batch.status, len(output)) == ("completed", len(lines))
    assert alone["models"][0]["prompt_tokens"] == counted
    assert alone["models"][0]["not_counted"] == {}
    codes = {name: line["response"]["body"]["error"]["code"] for name, line in errors.items()}
    assert codes == {"prompt": "context_length_exceeded", "answer": "context_length_exceeded"}

    body = {"model": MODEL, "instructions": "Be brief.", "max_output_tokens": 1}
    asked = [
        {"custom_id": text, "method": "POST", "url": "/v1/responses", "body": {**body, "input": text}}
        for text in ("hello world", "one two " * 50)
    ]
    content = "\n".join(map(json.dumps, asked))
    _, output, errors = _run(client, content, "/v1/responses")
    assert errors == {}
    _check_preflight(server, content, output, "input_tokens")


def test_a_live_chat_is_streamed_and_its_priority_is_the_server_s(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": TEXT}], "temperature": 0}
    whole = client.chat.completions.create(**asked, max_tokens=12)
    stream = client.chat.completions.create(
        **asked, max_tokens=12, stream=True, extra_body={"priority": "not a number: vLLM would refuse it"}
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(parts) > 5
    assert "".join(parts) == whole.choices[0].message.content
