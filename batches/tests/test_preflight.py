"""POST /v1/batches/preflight: what a batch of a file would be."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from vbatch_site.tests.contract.forms import assert_refused
from vbatch_site.tests.servers import MODEL, Server, chat_line, wait_until

OTHER = "Qwen/Qwen2.5-0.5B-Instruct"
MODELS = Path(__file__).resolve().parent.parent.parent / "var" / "models"
CHAT_FOLDER, EMBEDDING_FOLDER = MODELS / "SmolLM2-135M-Instruct", MODELS / "all-MiniLM-L6-v2"
needs_models = pytest.mark.skipif(not CHAT_FOLDER.is_dir(), reason="the sample models are not prepared here")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with the sample models' tokenizers."""
    home = tmp_path_factory.mktemp("preflight")
    (home / "models").mkdir()
    for folder in (CHAT_FOLDER, EMBEDDING_FOLDER):
        if folder.is_dir():
            (home / "models" / folder.name).symlink_to(folder)
    with Server(home, VBATCH_VLLM_ARGS="--max-model-len 200") as server:
        yield server


def _preflight(server: Server, lines: list[str], **fields: Any) -> dict[str, Any]:
    status, _, report = server.request(
        "POST", "/v1/batches/preflight", {"input_file_id": server.upload("".join(lines)), **fields}
    )
    assert status == 200, report
    return dict(report)


def _line(custom_id: str, endpoint: str, **body: Any) -> str:
    return (
        json.dumps({"custom_id": custom_id, "method": "POST", "url": endpoint, "body": {"model": MODEL, **body}}) + "\n"
    )


def test_all_bad_lines_are_reported_as_a_batch_would(server: Server) -> None:
    lines = [chat_line("a"), *["nonsense\n"] * 700, chat_line("a"), chat_line("b", model=OTHER), chat_line("c")]
    report = _preflight(server, lines)
    assert (report["ok"], report["requests"], report["invalid"]) == (False, 704, 702)
    assert (report["errors"]["total"], len(report["errors"]["data"])) == (702, 500)
    failed = server.wait(server.create(lines))
    assert report["errors"]["data"] == failed["errors"]["data"]
    assert report["endpoint"] == "/v1/chat/completions"
    assert [model["requests"] for model in report["models"]] == [2]


def test_what_would_run_with_the_extension_fields_is_ok(server: Server) -> None:
    lines = [chat_line("a"), "nonsense\n", chat_line("b", model=OTHER), chat_line("c", model=None)]
    assert not _preflight(server, lines)["ok"]
    report = _preflight(server, lines, allow_mixed_models=True, on_invalid_line="skip", model=OTHER)
    assert (report["ok"], report["requests"], report["invalid"]) == (True, 4, 1)
    assert {model["model"]: model["requests"] for model in report["models"]} == {MODEL: 1, OTHER: 2}


def test_urls_seen_are_counted_and_the_first_is_the_endpoint(server: Server) -> None:
    lines = [_line("a", "/v1/completions", prompt="x"), chat_line("b"), chat_line("c")]
    report = _preflight(server, lines)
    assert report["endpoint"] == "/v1/completions"
    assert report["endpoints"] == {"/v1/chat/completions": 2, "/v1/completions": 1}
    assert [error["code"] for error in report["errors"]["data"]] == ["invalid_url", "invalid_url"]


def test_tokens_of_a_model_that_is_not_here_are_null_with_the_reason_and_the_rest_is_told(server: Server) -> None:
    lines = [chat_line(str(i), "x" * 4000 + str(i % 2), model=OTHER, temperature=0) for i in range(4)]
    (model,) = _preflight(server, lines)["models"]
    assert (model["prompt_tokens"], model["prompt_tokens_reason"]) == (
        None,
        "The model's tokenizer is not on this machine.",
    )
    assert (model["requests"], model["duplicates"], model["max_output_tokens"]) == (4, 2, 32)
    assert 0.4 < model["shared_prefix"] < 0.5  # of two computed lines the second begins like the first


@needs_models
def test_lines_that_do_not_fit_are_told_with_their_tokens(server: Server) -> None:
    lines = [
        chat_line("fits", "hello"),
        chat_line("long", "word " * 300),
        chat_line("much", max_tokens=201),
        chat_line("free", max_tokens=None),
    ]
    (model,) = _preflight(server, lines)["models"]
    assert model["context"] == 200
    assert model["too_long"]["total"] == 2
    found = {line["custom_id"]: (line["line"], line["max_output_tokens"]) for line in model["too_long"]["data"]}
    assert found == {"long": (2, 8), "much": (3, 201)}
    assert model["too_long"]["data"][0]["prompt_tokens"] > 300
    assert (model["max_output_tokens"], model["without_max_output_tokens"]) == (8 + 8 + 201, 1)


@needs_models
def test_lines_that_can_not_be_counted_exactly_are_told_apart(server: Server) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    lines = [
        chat_line("counted"),
        chat_line("image", messages=[{"role": "user", "content": image}]),
        chat_line("tools", tools=[{"type": "function", "function": {"name": "f"}}]),
        chat_line("special", add_special_tokens="yes"),
        chat_line("kwargs", chat_template_kwargs="none"),
        chat_line("number", top_k=7).replace('"top_k": 7', '"top_k": 1e400'),
    ]
    (model,) = _preflight(server, lines)["models"]
    alone = _preflight(server, lines[:1])["models"][0]
    assert model["prompt_tokens"] == alone["prompt_tokens"] > 0
    assert model["not_counted"] == {
        "Content other than text is not counted.": 1,
        "The field 'tools' is not followed.": 1,
        "A field has a form that the engine refuses.": 2,
        "A number in it is out of range, or it is nested too deep.": 1,
    }


def test_the_time_it_would_take_is_told_once_the_model_was_measured(server: Server) -> None:
    lines = [chat_line(str(i), f"measured {i}") for i in range(60)]
    unknown = _preflight(server, [chat_line("a", model=OTHER)])["expected"]
    assert unknown == {
        "output_tokens": None,
        "seconds": None,
        "eta_earliest": None,
        "eta_latest": None,
        "reason": "Too little has been measured of its models lately.",
    }
    assert _preflight(server, [chat_line("a", stream=True)])["expected"]["reason"] == "It would not run."
    done = server.wait(server.create(lines))
    now = time.time()
    found = _preflight(server, lines)["expected"]
    assert found["reason"] is None
    assert 0 < found["seconds"] < 60
    assert now <= found["eta_earliest"] < found["eta_latest"]
    assert found["output_tokens"] == done["usage"]["output_tokens"]


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({}, 400, "input_file_id", "missing_required_parameter"),
        ({"input_file_id": "file-unknown"}, 404, "input_file_id", "file_not_found"),
        ({"input_file_id": "wrong"}, 400, "input_file_id", "invalid_value"),
        ({"endpoint": "/v1/x"}, 400, "endpoint", "invalid_value"),
        ({"model": 1}, 400, "model", "invalid_type"),
        ({"allow_mixed_models": "yes"}, 400, "allow_mixed_models", "invalid_type"),
        ({"on_invalid_line": "x"}, 400, "on_invalid_line", "invalid_value"),
    ],
)
def test_a_wrong_request_is_refused(server: Server, fields: dict[str, Any], status: int, param: str, code: str) -> None:
    if fields and "input_file_id" not in fields:
        fields["input_file_id"] = server.upload(chat_line("a"))
    assert_refused(server.request("POST", "/v1/batches/preflight", fields), status, param=param, code=code)


def test_a_file_of_another_project_is_unknown(server: Server) -> None:
    stranger = server.new_key("strangers")
    wanted = {"input_file_id": server.upload(chat_line("a"))}
    answer = server.request("POST", "/v1/batches/preflight", wanted, key=stranger)
    assert_refused(answer, 404, param="input_file_id", code="file_not_found")


def test_more_at_once_than_the_machine_bears_are_refused_and_leave_nothing(server: Server) -> None:
    file_id = server.upload("".join(chat_line(str(i), "words " * 100) for i in range(400)))
    answers: list[Any] = []

    def ask() -> None:
        answers.append(server.request("POST", "/v1/batches/preflight", {"input_file_id": file_id}))

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    statuses = sorted(status for status, _, _ in answers)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2
    refused = next(answer for answer in answers if answer[0] == 429)
    assert_refused(refused, 429, code="too_many_preflights")
    assert refused[1]["retry-after"] == "5"
    assert server.request("POST", "/v1/batches/preflight", {"input_file_id": file_id})[0] == 200
    wait_until(lambda: not server.running("batches.inspection"))
