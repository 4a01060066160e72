"""Items 56 to 70: what makes a batch fail, and what does not."""

import json
from typing import Any

import pytest

from vbatch_site.tests.servers import EMBEDDING_MODEL, MODEL, Server, chat_line

COUNTS_OF_NONE = {"total": 0, "completed": 0, "failed": 0}
Fault = tuple[str, str | None, int | None]

NOT_JSON = "This line is not parseable as valid JSON."


def _fail(server: Server, content: str | bytes, **fields: Any) -> list[dict[str, Any]]:
    """Run a file that must fail; return its faults after checking what item 69 says of all such batches."""
    wanted = {
        "input_file_id": server.upload(content),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        **fields,
    }
    status, _, batch = server.request("POST", "/v1/batches", wanted)
    assert status == 200, batch
    batch = server.wait(batch["id"])
    assert batch["status"] == "failed"
    assert batch["failed_at"] >= batch["created_at"]
    assert (
        batch["output_file_id"] is batch["error_file_id"] is batch["in_progress_at"] is batch["finalizing_at"] is None
    )
    assert batch["request_counts"] == COUNTS_OF_NONE
    assert batch["expires_at"] == batch["created_at"] + 86_400
    assert batch["errors"]["object"] == "list"
    assert all(set(fault) == {"code", "message", "param", "line"} for fault in batch["errors"]["data"])
    return list(batch["errors"]["data"])


def _faults(server: Server, content: str | bytes, **fields: Any) -> list[Fault]:
    return [(fault["code"], fault["param"], fault["line"]) for fault in _fail(server, content, **fields)]


def _line(**changes: Any) -> str:
    """Return a good line with fields changed, or left out where the change is None."""
    line = {**json.loads(chat_line("1")), **changes}
    return json.dumps({key: value for key, value in line.items() if value is not None}) + "\n"


def _body(**changes: Any) -> str:
    body = {**json.loads(chat_line("1"))["body"], **changes}
    return _line(body={key: value for key, value in body.items() if value is not None})


def _many(count: int) -> list[str]:
    return [chat_line(str(i)) for i in range(count)]


@pytest.mark.parametrize(
    "bad",
    [
        "This is not json",
        '{"custom_id": "10", ',
        "{'custom_id': '10'}",
        _line(custom_id="10").replace("8", "NaN"),
        _line(custom_id="\ud800"),
        "[" * 100_000,
        chat_line("10") + " x",
        "\ufeff" + chat_line("10").strip(),
    ],
    ids=["words", "cut", "quotes", "nan", "surrogate", "deep", "two values", "bom"],
)
def test_item_56_a_line_that_is_no_json_is_named(sim_server: Server, bad: str) -> None:
    lines = _many(12)
    lines[9] = bad.replace("\n", "") + "\n"
    (fault,) = _fail(sim_server, "".join(lines))
    assert fault == {"code": "invalid_json_line", "message": NOT_JSON, "param": None, "line": 10}


def test_item_56_bytes_that_are_no_utf_8_are_no_json(sim_server: Server) -> None:
    content = chat_line("1").encode() + chat_line("2", "hello").encode().replace(b"hello", b"\xff\xfe")
    assert _faults(sim_server, content) == [("invalid_json_line", None, 2)]


def test_item_57_each_missing_key_is_named_with_its_line(sim_server: Server) -> None:
    names = ["custom_id", "method", "url", "body"]
    faults = _fail(sim_server, "".join(_line(**{name: None}) for name in names))
    assert faults == [
        {
            "code": "missing_required_parameter",
            "message": f"Missing required parameter: '{name}'.",
            "param": name,
            "line": number,
        }
        for number, name in enumerate(names, 1)
    ]


@pytest.mark.parametrize(
    "url", ["/v1/embeddings", "/v1/chat/completions/", "", "https://api.openai.com/v1/chat/completions"]
)
def test_item_58_a_url_that_is_not_the_endpoint_is_named(sim_server: Server, url: str) -> None:
    (fault,) = _fail(sim_server, chat_line("0") + _line(url=url))
    message = "The URL provided for this request does not match the batch endpoint."
    assert fault == {"code": "invalid_url", "message": message, "param": "url", "line": 2}


def test_item_59_a_stream_is_refused_and_the_line_before_it_does_not_run(sim_server: Server) -> None:
    text = "never to be run"
    (fault,) = _fail(sim_server, chat_line("0", text) + _body(stream=True))
    message = "Chat Completions: Streaming is not supported in the Batch API."
    assert fault == {"code": "streaming_unsupported", "message": message, "param": "body.stream", "line": 2}
    assert text not in sim_server.requests_seen()


def test_item_59_stream_false_is_no_fault(sim_server: Server) -> None:
    assert sim_server.wait(sim_server.create(_body(stream=False)))["status"] == "completed"


def test_item_60_an_unknown_model_is_named(sim_server: Server) -> None:
    (fault,) = _fail(sim_server, _body(model="gpt-unknown"))
    message = "The provided model 'gpt-unknown' is not supported by the Batch API."
    assert fault == {"code": "model_not_found", "message": message, "param": "body.model", "line": 1}


@pytest.mark.parametrize("model", [None, ""])
def test_item_60_a_missing_model_is_named(sim_server: Server, model: str | None) -> None:
    assert _faults(sim_server, _body(model=model)) == [("missing_required_parameter", "body.model", 1)]


@pytest.mark.parametrize(
    ("endpoint", "model", "field"),
    [
        ("/v1/chat/completions", MODEL, "messages"),
        ("/v1/completions", MODEL, "prompt"),
        ("/v1/responses", MODEL, "input"),
        ("/v1/embeddings", EMBEDDING_MODEL, "input"),
        ("/v1/rerank", EMBEDDING_MODEL, "query"),
    ],
)
def test_item_61_a_body_without_its_endpoints_field_is_named(
    sim_server: Server, endpoint: str, model: str, field: str
) -> None:
    (fault,) = _fail(sim_server, _line(url=endpoint, body={"model": model}), endpoint=endpoint)
    assert (fault["code"], fault["param"], fault["line"]) == ("missing_required_parameter", f"body.{field}", 1)
    assert fault["message"] == f"Missing required parameter: '{field}'."


def test_item_62_a_second_model_is_named(sim_server: Server) -> None:
    content = chat_line("1") + chat_line("2", model=EMBEDDING_MODEL)
    faults = _fail(sim_server, content)
    assert (faults[0]["param"], faults[0]["line"]) == ("body.model", 2)
    wanted = {"model": EMBEDDING_MODEL, "input": "x"}
    lines = [_line(custom_id=str(i), url="/v1/embeddings", body=wanted) for i in range(3)]
    lines[1] = _line(custom_id="x", url="/v1/embeddings", body={**wanted, "model": MODEL})
    assert [fault["line"] for fault in _fail(sim_server, "".join(lines), endpoint="/v1/embeddings")] == [2]


def test_item_62_two_models_of_the_same_endpoint_are_mismatched(sim_server: Server) -> None:
    sim_server.query(
        "INSERT INTO workers_servedmodel (name, source, engine_args, endpoints, enabled, created_at, load_error) "
        "VALUES ('second/chat', 'second/chat', '', '[\"/v1/chat/completions\"]', true, now(), '') RETURNING 1"
    )
    (fault,) = _fail(sim_server, chat_line("1") + chat_line("2", model="second/chat") + chat_line("3"))
    message = (
        "The model 'second/chat' for this request does not match the rest of the batch. "
        "Each batch must contain requests for a single model."
    )
    assert fault == {"code": "mismatched_model", "message": message, "param": "body.model", "line": 2}


def test_item_63_a_repeated_custom_id_is_named_on_the_later_line(sim_server: Server) -> None:
    (fault,) = _fail(sim_server, chat_line("a") + chat_line("b") + chat_line("a"))
    assert (fault["code"], fault["param"], fault["line"]) == ("duplicate_custom_id", "custom_id", 3)
    assert fault["message"].startswith("The custom_id 'a' for this request is a duplicate of another request.")


@pytest.mark.parametrize("method", ["GET", "post", ""])
def test_item_64_a_method_other_than_post_is_named(sim_server: Server, method: str) -> None:
    assert _faults(sim_server, _line(method=method)) == [("invalid_method", "method", 1)]


def test_item_65_fifty_thousand_lines_pass_and_one_more_fails(sim_server: Server) -> None:
    lines = [chat_line(str(i), "[[sim:hang]]") for i in range(50_000)]
    batch = sim_server.wait(sim_server.create(lines), 120, ["in_progress", "failed"])
    assert (batch["status"], batch["request_counts"]["total"]) == ("in_progress", 50_000)
    sim_server.request("POST", f"/v1/batches/{batch['id']}/cancel")
    faults = _faults(sim_server, "".join([*lines, chat_line("one more")]))
    assert faults == [("too_many_requests", None, None)]
    batch = sim_server.wait(batch["id"], 120)
    assert (batch["status"], batch["request_counts"]) == ("cancelled", {"total": 50_000, "completed": 0, "failed": 0})
    file = sim_server.request("GET", f"/v1/files/{batch['error_file_id']}/content")[2]
    assert file.count(b"\n") == 50_000


def _inputs(*counts: int) -> str:
    bodies = [{"model": EMBEDDING_MODEL, "input": ["x"] * count} for count in counts]
    return "".join(_line(custom_id=str(i), url="/v1/embeddings", body=body) for i, body in enumerate(bodies))


def test_item_66_more_than_fifty_thousand_embedding_inputs_fail(sim_server: Server) -> None:
    faults = _faults(sim_server, _inputs(30_000, 20_001), endpoint="/v1/embeddings")
    assert faults == [("too_many_inputs", None, None)]


def test_item_66_an_input_of_tokens_is_one_input(sim_server: Server) -> None:
    tokens = _line(custom_id="t", url="/v1/embeddings", body={"model": EMBEDDING_MODEL, "input": [7] * 60_000})
    assert sim_server.wait(sim_server.create(tokens, endpoint="/v1/embeddings"))["status"] == "completed"


def test_item_67_a_byte_order_mark_makes_line_1_fail(sim_server: Server) -> None:
    assert _faults(sim_server, b"\xef\xbb\xbf" + chat_line("1").encode()) == [("invalid_json_line", None, 1)]


@pytest.mark.parametrize(
    "content",
    [
        chat_line("1") + chat_line("2").strip(),
        chat_line("1") + chat_line("2"),
        chat_line("1") + "\n  \n\r\n" + chat_line("2") + "\n\n",
        (chat_line("1") + chat_line("2")).replace("\n", "\r\n"),
        "\n" + chat_line("1") + "\t" + chat_line("2"),
    ],
    ids=["no final newline", "final newline", "blank lines", "crlf", "first line blank"],
)
def test_item_68_newlines_are_taken_as_they_come(sim_server: Server, content: str) -> None:
    batch = sim_server.wait(sim_server.create(content))
    assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 2)
    assert {line["custom_id"] for line in sim_server.lines(batch)[0]} == {"1", "2"}


def test_item_68_blank_lines_are_counted_in_the_numbers_of_faults(sim_server: Server) -> None:
    assert _faults(sim_server, chat_line("1") + "\n\n" + "bad\n") == [("invalid_json_line", None, 4)]


@pytest.mark.parametrize(
    ("line", "param", "code"),
    [
        ("[]\n", None, "invalid_request"),
        ("1\n", None, "invalid_request"),
        (_line(custom_id=1), "custom_id", "invalid_type"),
        (_line(method=["POST"]), "method", "invalid_type"),
        (_line(url=7), "url", "invalid_type"),
        (_line(body="text"), "body", "invalid_type"),
        (_line(body=[1]), "body", "invalid_type"),
        (_body(model=5), "body.model", "invalid_type"),
    ],
)
def test_item_69_a_field_of_a_wrong_type_fails_the_batch(
    sim_server: Server, line: str, param: str | None, code: str
) -> None:
    assert _faults(sim_server, chat_line("0") + line) == [(code, param, 2)]


def test_item_69_all_faults_of_a_file_are_listed_up_to_500(sim_server: Server) -> None:
    faults = _faults(sim_server, chat_line("0") + "bad\n" * 700)
    assert faults == [("invalid_json_line", None, number) for number in range(2, 502)]


@pytest.mark.parametrize(
    ("line", "param", "code"),
    [
        (_line(custom_id="a\0"), "custom_id", "invalid_value"),
        (_line(method="\0"), "method", "invalid_method"),
        (_line(url="\0"), "url", "invalid_url"),
        (_body(model="\0"), "body.model", "model_not_found"),
    ],
)
def test_item_69_what_the_database_cannot_store_fails_the_batch(
    sim_server: Server, line: str, param: str, code: str
) -> None:
    assert _faults(sim_server, line) == [(code, param, 1)]


@pytest.mark.parametrize("endpoint", ["/v1/moderations", "/v1/images/generations", "/v1/images/edits", "/v1/videos"])
def test_item_69_an_endpoint_that_no_model_answers_fails_the_batch(sim_server: Server, endpoint: str) -> None:
    (fault,) = _fail(sim_server, _line(url=endpoint, body={"model": MODEL, "input": "x"}), endpoint=endpoint)
    assert (fault["code"], fault["param"], fault["line"]) == ("endpoint_not_supported", "body.model", 1)


def test_item_69_an_input_deleted_before_it_is_validated_fails_the_batch(sim_server: Server) -> None:
    file_id = sim_server.upload(chat_line("1"))
    sim_server.request("DELETE", f"/v1/files/{file_id}")
    wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = sim_server.wait(sim_server.request("POST", "/v1/batches", wanted)[2]["id"])
    assert [(f["code"], f["param"], f["line"]) for f in batch["errors"]["data"]] == [
        ("invalid_request", "file_id", None)
    ]


HUGE = chat_line("1").replace('"max_tokens": 8', '"max_tokens": 8, "seed": ' + "9" * 10_000)


@pytest.mark.parametrize(
    "line",
    [
        HUGE,
        chat_line("1").replace('"max_tokens": 8', '"top_p": 1e999, "max_tokens": 8'),
        chat_line("1", extra=json.loads("[" * 400 + "]" * 400)),
        chat_line("1").replace('"custom_id"', '"custom_id": "0", "custom_id"'),
        chat_line("1", "\0\u2028\u2029\x7f\U0001f600"),
        chat_line("1", "x" * 1_000_000),
        _line(custom_id=""),
        _line(custom_id='\n"\\'),
    ],
    ids=["huge integer", "huge float", "deep", "key twice", "controls", "long", "empty id", "id with escapes"],
)
def test_item_69_a_hostile_line_ends_its_batch_one_way_or_the_other(sim_server: Server, line: str) -> None:
    batch = sim_server.wait(sim_server.create(chat_line("good") + line))
    if batch["status"] == "failed":
        assert [fault["line"] for fault in batch["errors"]["data"]] == [2]
        return
    output, errors = sim_server.lines(batch)
    assert batch["status"] == "completed"
    assert len(output) + len(errors) == 2


def test_item_70_a_queue_cap_fails_the_batch_and_not_the_request(short_server: Server) -> None:
    running = short_server.create([chat_line("1", "[[sim:hang]]")])
    short_server.wait(running, statuses=["in_progress"])
    assert _faults(short_server, chat_line("2", "x" * 10_000)) == [("token_limit_exceeded", None, None)]
    (fault,) = _fail(short_server, chat_line("3", "x" * 7700))
    assert fault["message"].startswith(f"Enqueued token limit reached for {MODEL} in organization ")
    assert "Limit: 2,000 enqueued tokens." in fault["message"]
    short_server.request("POST", f"/v1/batches/{running}/cancel")
    assert short_server.wait(running)["status"] == "cancelled"
    assert short_server.wait(short_server.create(chat_line("4", "x" * 7700)))["status"] == "completed"
