"""Extension fields of POST /v1/batches: several models in a file, bad lines that fail alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from batches.creation import create
from batches.models import Result
from batches.planning import PlannedLine
from batches.settled import SettledLines
from batches.validate import validate
from batches.validation import LineError
from files import storage
from files.models import File
from vbatch_site.models import Project
from vbatch_site.tests.contract.forms import assert_refused
from vbatch_site.tests.servers import EMBEDDING_MODEL, MODEL, Server, chat_line, wait_until
from workers.lines import envelope
from workers.models import CHAT_ENDPOINTS, ServedModel

OTHER = "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"allow_mixed_models": "yes"}, "allow_mixed_models", "invalid_type"),
        ({"allow_mixed_models": 1}, "allow_mixed_models", "invalid_type"),
        ({"on_invalid_line": True}, "on_invalid_line", "invalid_type"),
        ({"on_invalid_line": "ignore"}, "on_invalid_line", "invalid_value"),
    ],
)
def test_a_wrong_extension_field_is_refused(sim_server: Server, fields: dict[str, Any], param: str, code: str) -> None:
    wanted = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h", **fields}
    assert_refused(sim_server.request("POST", "/v1/batches", wanted), 400, param=param, code=code)


def test_extension_fields_that_are_null_change_nothing(sim_server: Server) -> None:
    lines = [chat_line("a"), chat_line("b", model=OTHER)]
    batch = sim_server.wait(sim_server.create(lines, allow_mixed_models=None, on_invalid_line=None))
    assert batch["status"] == "failed"
    assert [error["code"] for error in batch["errors"]["data"]] == ["mismatched_model"]


def test_a_file_may_name_several_models_when_it_says_so(sim_server: Server) -> None:
    lines = [chat_line(str(i), f"prompt {i}", model=MODEL if i % 2 else OTHER) for i in range(60)]
    batch = sim_server.wait(sim_server.create(lines, allow_mixed_models=True))
    output, errors = sim_server.lines(batch)
    assert (batch["status"], batch["model"], errors) == ("completed", None, [])
    assert batch["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
    answered = {line["custom_id"]: line["response"]["body"]["model"] for line in output}
    assert answered == {str(i): MODEL if i % 2 else OTHER for i in range(60)}


def test_one_model_in_a_file_that_may_have_several_is_named(sim_server: Server) -> None:
    batch = sim_server.wait(sim_server.create([chat_line("a"), chat_line("b")], allow_mixed_models=True))
    assert (batch["status"], batch["model"]) == ("completed", MODEL)


def test_each_model_of_a_mixed_file_must_answer_the_endpoint(sim_server: Server) -> None:
    lines = [chat_line("a"), chat_line("b", model=EMBEDDING_MODEL), chat_line("c", model="unknown")]
    batch = sim_server.wait(sim_server.create(lines, allow_mixed_models=True))
    assert [(error["code"], error["line"]) for error in batch["errors"]["data"]] == [
        ("endpoint_not_supported", 2),
        ("model_not_found", 3),
    ]


def test_a_model_that_does_not_load_fails_its_own_lines_of_a_mixed_file(sim_server: Server) -> None:
    sim_server.query(
        "INSERT INTO workers_servedmodel (name, source, engine_args, endpoints, enabled, created_at, load_error) "
        """VALUES ('broken', 'broken', '--port nonsense', '["/v1/chat/completions"]', true, now(), '') RETURNING id"""
    )
    lines = [chat_line(str(i), model=MODEL if i < 20 else "broken") for i in range(40)]
    batch = sim_server.wait(sim_server.create(lines, allow_mixed_models=True))
    output, errors = sim_server.lines(batch)
    assert batch["status"] == "completed"
    assert sorted(int(line["custom_id"]) for line in output) == list(range(20))
    assert sorted(int(line["custom_id"]) for line in errors) == list(range(20, 40))
    assert {line["error"]["code"] for line in errors} == {"model_load_failed"}
    assert batch["request_counts"] == {"total": 40, "completed": 20, "failed": 20}


BAD: list[tuple[str, str, Any]] = [
    ("{", "invalid_json_line", None),
    ("[]", "invalid_request", None),
    ('{"method": "POST"}', "missing_required_parameter", None),
    ('{"custom_id": 7, "method": "POST", "url": "/v1/chat/completions", "body": {}}', "invalid_type", None),
    (json.dumps({"custom_id": "nul\0"}), "missing_required_parameter", None),
    (json.dumps({"custom_id": "\ud800"}), "missing_required_parameter", None),
    (chat_line("get").replace("POST", "GET"), "invalid_method", "get"),
    (chat_line("url").replace("/v1/chat/completions", "/v1/embeddings"), "invalid_url", "url"),
    (chat_line("stream", stream=True), "streaming_unsupported", "stream"),
    (chat_line("unknown", model="unknown"), "model_not_found", "unknown"),
    (chat_line("other", model=OTHER), "mismatched_model", "other"),
    (chat_line("good 1"), "duplicate_custom_id", "good 1"),
    (chat_line("", stream=True), "streaming_unsupported", ""),
]


def test_bad_lines_that_are_skipped_end_in_the_error_file_and_the_others_run(sim_server: Server) -> None:
    good = [chat_line(f"good {i}") for i in range(20)]
    bad = [line.rstrip("\n") + "\n" for line, _, _ in BAD]
    # A bad line of another model comes first: it does not say which model the file is for.
    first = chat_line("first", model=OTHER, stream=True)
    batch = sim_server.wait(sim_server.create([first, *good, "\n", *bad], on_invalid_line="skip"))
    output, errors = sim_server.lines(batch)
    assert (batch["status"], batch["model"], batch["errors"]) == ("completed", MODEL, None)
    assert [line["custom_id"] for line in output] == [f"good {i}" for i in range(20)]
    found = [(line["error"]["line"], line["error"]["code"], line["custom_id"]) for line in errors]
    expected = [(23 + i, code, custom_id) for i, (_, code, custom_id) in enumerate(BAD)]
    assert found == [(1, "streaming_unsupported", "first"), *expected]
    for line in errors:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert line["response"] is None
        assert list(line["error"]) == ["code", "message", "line"]
    assert batch["request_counts"] == {"total": 34, "completed": 20, "failed": 14}


def test_a_skipped_line_has_the_fault_that_validation_reports(sim_server: Server) -> None:
    lines = [chat_line("good"), *(line.rstrip("\n") + "\n" for line, _, _ in BAD)]
    failed = sim_server.wait(sim_server.create(lines))
    completed = sim_server.wait(sim_server.create(lines, on_invalid_line="skip"))
    reported = [(e["line"], e["code"], e["message"]) for e in failed["errors"]["data"]]
    skipped = [line["error"] for line in sim_server.content(completed["error_file_id"])]
    assert reported == [(e["line"], e["code"], e["message"]) for e in skipped]
    assert len(reported) == len(BAD) - 1  # the repeated custom_id stands there once


def test_a_file_of_bad_lines_alone_fails_as_usual(sim_server: Server) -> None:
    lines = [line.rstrip("\n") + "\n" for line, _, _ in BAD[2:7]]
    batch = sim_server.wait(sim_server.create(lines, on_invalid_line="skip"))
    assert (batch["status"], batch["error_file_id"]) == ("failed", None)
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert [error["code"] for error in batch["errors"]["data"]] == [code for _, code, _ in BAD[2:7]]
    assert sim_server.query("SELECT count(*) FROM batches_result WHERE batch_id = %s", batch["id"]) == [(0,)]


def test_more_bad_lines_than_a_failed_batch_lists_are_all_in_the_error_file(sim_server: Server) -> None:
    lines = [chat_line("good"), *["nonsense\n"] * 700]
    batch = sim_server.wait(sim_server.create(lines, on_invalid_line="skip"))
    _, errors = sim_server.lines(batch)
    assert [line["error"]["line"] for line in errors] == list(range(2, 702))
    assert batch["request_counts"] == {"total": 701, "completed": 1, "failed": 700}


def test_too_many_lines_fail_the_batch_whatever_becomes_of_bad_ones(sim_server: Server) -> None:
    batch = sim_server.wait(sim_server.create([chat_line("good"), *["x\n"] * 50_000], on_invalid_line="skip"), 120)
    assert batch["status"] == "failed"
    assert batch["errors"]["data"][0]["code"] == "too_many_requests"
    assert len(batch["errors"]["data"]) == 500


def test_bad_lines_keep_their_error_when_the_batch_is_cancelled(sim_server: Server) -> None:
    lines = [*(chat_line(str(i), "[[sim:hang]]") for i in range(5)), "[]\n"]
    batch_id = sim_server.create(lines, on_invalid_line="skip")
    sim_server.wait(batch_id, statuses=["in_progress"])
    sim_server.request("POST", f"/v1/batches/{batch_id}/cancel")
    batch = sim_server.wait(batch_id)
    _, errors = sim_server.lines(batch)
    assert [line["error"]["code"] for line in errors] == [*["batch_cancelled"] * 5, "invalid_request"]
    assert batch["request_counts"] == {"total": 6, "completed": 0, "failed": 1}


def test_lines_longer_than_the_models_context_fail_alone(new_home: Path) -> None:
    lines = [
        chat_line("good"),
        chat_line("long prompt", "x" * 2000),
        chat_line("no room", "x" * 795),
        chat_line("long answer", max_tokens=201),
        chat_line("long completion", max_completion_tokens=201),
        chat_line("bad value", temperature=-1),
    ]
    with Server(new_home, VBATCH_VLLM_ARGS="--max-model-len 200") as server:
        batch = server.wait(server.create(lines))
        output, errors = server.lines(batch)
    assert batch["status"] == "completed"
    assert [line["custom_id"] for line in output] == ["good"]
    found = {line["custom_id"]: line["response"]["body"]["error"] for line in errors}
    assert {name: error["code"] for name, error in found.items()} == {
        "long prompt": "context_length_exceeded",
        "no room": "context_length_exceeded",
        "long answer": "context_length_exceeded",
        "long completion": "context_length_exceeded",
        "bad value": None,
    }
    assert {error["type"] for error in found.values()} == {"invalid_request_error"}
    assert {line["response"]["status_code"] for line in errors} == {400}


@pytest.mark.parametrize(
    "message",
    [
        # All that vLLM 0.32 says of it: renderers/params.py, v1/engine/input_processor.py, serve/utils/api_utils.py.
        "This model's maximum context length is 2048 tokens. However, your prompt contains at least 2049 input tokens, "
        "which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
        "(parameter=input_tokens, value=2049)",
        "This model's maximum context length is 2048 tokens. However, your prompt contains 99999 characters (more than "
        "30720 characters, which is the upper bound for 2048 input tokens). Please reduce the length of the input "
        "prompt. (parameter=input_text, value=99999)",
        "The decoder prompt (length 2049) is longer than the maximum model length of 2048. Make sure that "
        "`max_model_len` is no smaller than the number of text tokens.",
        "The decoder prompt (length 2048) plus the number of requested output tokens (at least 1) is longer than the "
        "maximum model length of 2048. Make sure that `max_model_len` is no smaller than the number of text tokens "
        "(prompt + requested output tokens).",
        "max_tokens=4096 cannot be greater than max_model_len=2048. Please request fewer output tokens. "
        "(parameter=max_tokens, value=4096)",
        "Input length (2049) exceeds model's maximum context length (2048).",
    ],
)
def test_every_sentence_of_the_engine_on_its_context_is_told_by_code(message: str) -> None:
    body = {"error": {"message": message, "type": "BadRequestError", "param": "input_tokens", "code": 400}}
    found = json.loads(envelope(json.dumps(body).encode()))["error"]
    assert (found["code"], found["message"]) == ("context_length_exceeded", message)


def test_a_crash_while_the_files_are_written_loses_no_bad_and_no_carried_line(new_home: Path) -> None:
    with Server(new_home) as server:
        lines = [chat_line(str(i)) for i in range(1, 3001)]
        first = server.wait(server.create(lines[:1500]))
        lines = [line if i % 3 else f"bad {i}\n" for i, line in enumerate(lines, 1)]
        batch_id = server.create(lines, on_invalid_line="skip", continue_from=first["id"])
        wait_until(lambda: server.batch(batch_id)["status"] in ("finalizing", "completed"), 120, 0.002)
        server.kill_tree()
        server.start()
        batch = server.wait(batch_id)
        output, errors = server.lines(batch)
        assert len(server.requests_seen()) < 1500 + 1000 + 600  # what was in flight may run twice, carried lines don't
    assert sorted(int(line["custom_id"]) for line in output) == [i for i in range(1, 3001) if i % 3]
    assert [line["error"]["line"] for line in errors] == list(range(3, 3001, 3))
    assert batch["request_counts"] == {"total": 3000, "completed": 2000, "failed": 1000}


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_a_second_attempt_at_validation_doubles_no_bad_line() -> None:
    # Another test's transactions may have emptied the catalogue.
    ServedModel.objects.get_or_create(name=MODEL, defaults={"endpoints": CHAT_ENDPOINTS})
    file = File(project=Project.default(), purpose="batch", filename="f", bytes=1, path="settled-test")
    file.save(force_insert=True)
    with storage.writing(file.path) as out:
        out.write((chat_line("good") + "bad\n" * 1200).encode())
    wanted = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "on_invalid_line": "skip"}
    batch = create(Project.default(), {"input_file_id": file.pk, **wanted})
    # What a process that was killed half-way leaves behind.
    lost = SettledLines(batch.pk)
    for number in range(2, 1000):
        lost.refuse(LineError("invalid_json_line", "", None, number), PlannedLine(number, 0, 3), b"bad")
    assert Result.objects.filter(batch=batch).exists()
    assert validate(batch.pk)
    storage.delete(file.path)
    batch.refresh_from_db()
    assert (batch.total, batch.failed, batch.committed) == (1201, 1200, 1200)
    rows = Result.objects.filter(batch=batch).order_by("line").values_list("line", "position", "error_code")
    assert list(rows) == [(line, line - 1, "invalid_json_line") for line in range(2, 1202)]
