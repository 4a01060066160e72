"""What is wrong with a line, in OpenAI's codes (contract.md 3.1)."""

import json
from typing import Any

import pytest

from batches.validation import MAX_ERRORS, MAX_REQUESTS, Validator

CHAT = "/v1/chat/completions"
CATALOGUE = {"m": {CHAT, "/v1/completions"}, "n": {CHAT}, "e": {"/v1/embeddings"}}


def line(custom_id: Any = "a", method: Any = "POST", url: Any = CHAT, **body: Any) -> dict[str, Any]:
    content = {"model": "m", "messages": [], **body}
    return {"custom_id": custom_id, "method": method, "url": url, "body": content}


def check(*lines: Any, endpoint: str = CHAT, default_model: str = "") -> list[tuple[str, str | None, int | None]]:
    validator = Validator(endpoint, CATALOGUE, default_model)
    for number, raw in enumerate(lines, 1):
        validator.feed(number, 0, raw if isinstance(raw, bytes) else json.dumps(raw).encode())
    validator.finish()
    return [(error.code, error.param, error.line) for error in validator.errors]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in line().items() if key != name}


def without_body(name: str) -> dict[str, Any]:
    found = line()
    del found["body"][name]
    return found


@pytest.mark.parametrize(
    ("bad", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b"\xef\xbb\xbf" + json.dumps(line()).encode(), "invalid_json_line", None),
        (b'{"custom_id": NaN}', "invalid_json_line", None),
        (json.dumps(line("\ud800")).encode(), "invalid_json_line", None),
        (json.dumps(line()).encode().replace(b'"m"', b'"m\xff"'), "invalid_json_line", None),
        (b"[" * 100_000, "invalid_json_line", None),
        ([], "invalid_request", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("url"), "missing_required_parameter", "url"),
        (without("body"), "missing_required_parameter", "body"),
        (line(custom_id=7), "invalid_type", "custom_id"),
        ({**line(), "body": []}, "invalid_type", "body"),
        (line(method="GET"), "invalid_method", "method"),
        (line(url="/v1/embeddings"), "invalid_url", "url"),
        (line(stream=True), "streaming_unsupported", "body.stream"),
        (line(model="unknown"), "model_not_found", "body.model"),
        (line(model=3), "invalid_type", "body.model"),
        (without_body("model"), "missing_required_parameter", "body.model"),
        (without_body("messages"), "missing_required_parameter", "body.messages"),
        (line(model="e"), "endpoint_not_supported", "body.model"),
        (None, "line_too_long", None),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_others_are_still_checked(bad: Any, code: str, param: str) -> None:
    validator = Validator(CHAT, CATALOGUE)
    validator.feed(1, 0, json.dumps(line("first")).encode())
    validator.feed(2, 0, bad if isinstance(bad, bytes) or bad is None else json.dumps(bad).encode())
    validator.feed(3, 0, b"nonsense")
    validator.finish()
    assert [(e.code, e.param, e.line) for e in validator.errors] == [(code, param, 2), ("invalid_json_line", None, 3)]


def test_a_good_file_has_no_errors_and_a_plan() -> None:
    assert check(line("a"), line("b", stream=False), line("c", temperature=0.5)) == []


def test_blank_lines_are_skipped_and_numbered() -> None:
    assert check(line("a"), b"", b"  \r", b"x") == [("invalid_json_line", None, 4)]


def test_a_repeated_custom_id_is_reported_on_the_later_line() -> None:
    assert check(line("a"), line("b"), line("a")) == [("duplicate_custom_id", "custom_id", 3)]


def test_a_second_model_is_reported() -> None:
    assert check(line("a"), line("b", model="n")) == [("mismatched_model", "body.model", 2)]


def test_a_batch_with_a_model_fills_lines_that_name_none() -> None:
    assert check(without_body("model"), line("b"), default_model="m") == []
    assert check(without_body("model"), line("b", model="n"), default_model="m") == [
        ("mismatched_model", "body.model", 2)
    ]


def test_an_empty_file_is_reported() -> None:
    assert check(b"", b" ") == [("empty_file", None, None)]


def test_fifty_thousand_requests_pass_and_one_more_does_not() -> None:
    validator = Validator(CHAT, CATALOGUE)
    for number in range(1, MAX_REQUESTS + 1):
        validator.feed(number, 0, json.dumps(line(str(number))).encode())
    assert not validator.errors
    assert not validator.full
    validator.feed(MAX_REQUESTS + 1, 0, json.dumps(line("more")).encode())
    assert validator.full
    validator.finish()
    assert [(e.code, e.line) for e in validator.errors] == [("too_many_requests", None)]


def test_the_report_is_capped() -> None:
    assert len(check(*[b"x"] * (MAX_ERRORS + 100))) == MAX_ERRORS


@pytest.mark.parametrize("number", [b"1e400", b"1" * 5000])
def test_a_number_that_no_type_holds_is_the_engines_business(number: bytes) -> None:
    chat = json.dumps(line("a", temperature=0, top_k=7)).encode().replace(b"7", number)
    assert check(chat, chat.replace(b'"custom_id": "a"', b'"custom_id": "b"')) == []
    tokens = json.dumps(line("a", url="/v1/embeddings", model="e", input=[7])).encode().replace(b"7", number)
    assert check(tokens, endpoint="/v1/embeddings") == []


def test_embedding_inputs_are_counted_over_all_lines() -> None:
    def ask(custom_id: str, value: Any) -> dict[str, Any]:
        body = {"model": "e", "input": value}
        return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body}

    many = ask("a", ["x"] * 49_999)
    assert check(many, ask("b", "y"), endpoint="/v1/embeddings") == []
    assert check(many, ask("b", [1, 2, 3]), endpoint="/v1/embeddings") == []
    assert check(many, ask("b", ["y", "z"]), endpoint="/v1/embeddings") == [("too_many_inputs", None, None)]
