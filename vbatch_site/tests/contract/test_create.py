"""Items 43 to 55 and 90 to 91: making, showing and listing batches."""

import re
import time
from typing import Any
from uuid import uuid4

import pytest

from vbatch_site.tests.contract.forms import LINE, Answer, assert_refused
from vbatch_site.tests.servers import MODEL, Server, chat_line, wait_until

UNKNOWN_FILE = "file-1111111111111111111111"
ENDPOINTS = [
    "/v1/responses",
    "/v1/chat/completions",
    "/v1/embeddings",
    "/v1/completions",
    "/v1/moderations",
    "/v1/images/generations",
    "/v1/images/edits",
    "/v1/videos",
]
USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}
NOT_YET = [
    "model",
    "errors",
    "output_file_id",
    "error_file_id",
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "metadata",
]
WANTED = {"input_file_id": UNKNOWN_FILE, "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def _create(server: Server, **fields: Any) -> Answer:
    """Ask for a batch; it would fail at once, because nobody has its file, so nothing is left running."""
    return server.request("POST", "/v1/batches", {**WANTED, **fields})


def _left_out(name: str) -> dict[str, str]:
    return {key: value for key, value in WANTED.items() if key != name}


def test_item_43_a_new_batch_has_every_key(sim_server: Server) -> None:
    status, _, batch = _create(sim_server)
    assert status == 200
    assert {key: batch[key] for key in NOT_YET} == dict.fromkeys(NOT_YET)
    assert {key: batch[key] for key in WANTED} == WANTED
    assert (batch["object"], batch["status"]) == ("batch", "validating")
    assert batch["expires_at"] == batch["created_at"] + 86_400
    assert abs(batch["created_at"] - time.time()) < 60
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["usage"] == USAGE


def test_item_44_a_batch_id_begins_with_its_creation(sim_server: Server) -> None:
    batch = _create(sim_server)[2]
    assert re.fullmatch("batch_[0-9a-f]{32}", batch["id"])
    assert int(batch["id"][6:14], 16) == batch["created_at"]


@pytest.mark.parametrize("fields", [{"metadata": None}, {}])
def test_item_45_null_and_absent_metadata_are_null(sim_server: Server, fields: dict[str, None]) -> None:
    status, _, batch = _create(sim_server, **fields)
    assert (status, batch["metadata"]) == (200, None)


@pytest.mark.parametrize(
    "metadata", [{}, {"team": "\u7814\u7a76", "empty": ""}, {"k" * 64: "v" * 512}, {"model": "m" * 512}]
)
def test_item_46_metadata_is_echoed(sim_server: Server, metadata: dict[str, str]) -> None:
    batch = _create(sim_server, metadata=metadata)[2]
    assert batch["metadata"] == metadata
    assert sim_server.batch(batch["id"])["metadata"] == metadata
    listed = sim_server.request("GET", "/v1/batches?limit=1")[2]["data"][0]
    assert (listed["id"], listed["metadata"]) == (batch["id"], metadata)


def test_item_47_sixteen_pairs_are_taken(sim_server: Server) -> None:
    metadata = {str(i): "x" for i in range(16)}
    assert _create(sim_server, metadata=metadata)[2]["metadata"] == metadata


@pytest.mark.parametrize(
    ("metadata", "param", "code"),
    [
        ({str(i): "x" for i in range(17)}, "metadata", "object_above_max_properties"),
        ({"k" * 65: "x"}, "metadata." + "k" * 64, "string_above_max_length"),
        ({"k": "x" * 513}, "metadata.k", "string_above_max_length"),
        ({"k": "\0"}, "metadata", "invalid_value"),
        ("text", "metadata", "invalid_type"),
        ([], "metadata", "invalid_type"),
    ],
)
def test_item_47_metadata_out_of_bounds_is_400(sim_server: Server, metadata: Any, param: str, code: str) -> None:
    assert_refused(_create(sim_server, metadata=metadata), 400, param=param, code=code)


@pytest.mark.parametrize(
    ("value", "name"), [([], "an array"), (1, "an integer"), (None, "null"), ({}, "an object"), (True, "a boolean")]
)
def test_item_48_metadata_values_are_strings(sim_server: Server, value: Any, name: str) -> None:
    answer = _create(sim_server, metadata={"tags": value})
    assert_refused(answer, 400, param="metadata.tags", code="invalid_type")
    message = f"Invalid type for 'metadata.tags': expected a string, but got {name}"
    assert answer[2]["error"]["message"].startswith(message)


def test_item_48_the_message_on_a_list_is_openais(sim_server: Server) -> None:
    message = "Invalid type for 'metadata.tags': expected a string, but got an array instead."
    assert_refused(_create(sim_server, metadata={"tags": ["a"]}), 400, message)


@pytest.mark.parametrize("endpoint", [*ENDPOINTS, "/v1/score", "/v1/rerank"])
def test_item_49_every_endpoint_is_a_value(sim_server: Server, endpoint: str) -> None:
    status, _, batch = _create(sim_server, endpoint=endpoint)
    assert (status, batch["endpoint"]) == (200, endpoint)


@pytest.mark.parametrize("endpoint", ["/v1/x", "", "/v1/chat/completions/", "chat/completions", "x" * 10_000])
def test_item_49_another_endpoint_is_400_and_the_message_lists_the_eight(sim_server: Server, endpoint: str) -> None:
    answer = _create(sim_server, endpoint=endpoint)
    assert_refused(answer, 400, param="endpoint", code="invalid_value")
    quoted = [f"'{name}'" for name in ENDPOINTS]
    listed = f"Supported values are: {', '.join(quoted[:-1])}, and {quoted[-1]}."
    assert answer[2]["error"]["message"] == f"Invalid value: '{endpoint[:200]}'. {listed}"


@pytest.mark.parametrize("window", ["", "48h", "24", "24H", "1h"])
def test_item_50_another_completion_window_is_400(sim_server: Server, window: str) -> None:
    message = f"Invalid value: '{window}'. Supported values are: '24h'."
    answer = _create(sim_server, completion_window=window)
    assert_refused(answer, 400, message, param="completion_window", code="invalid_value")


@pytest.mark.parametrize("field", sorted(WANTED))
@pytest.mark.parametrize("null", [False, True], ids=["absent", "null"])
def test_item_51_a_missing_field_is_400(sim_server: Server, field: str, null: bool) -> None:
    wanted: dict[str, Any] = {**WANTED, field: None} if null else _left_out(field)
    answer = sim_server.request("POST", "/v1/batches", wanted)
    message = f"Missing required parameter: '{field}'."
    assert_refused(answer, 400, message, param=field, code="missing_required_parameter")


@pytest.mark.parametrize("field", sorted(WANTED))
@pytest.mark.parametrize("value", [1, 1.5, True, [], {}])
def test_item_51_a_field_of_a_wrong_type_is_400(sim_server: Server, field: str, value: Any) -> None:
    assert_refused(_create(sim_server, **{field: value}), 400, param=field, code="invalid_type")


def test_item_52_a_malformed_file_id_is_400(sim_server: Server) -> None:
    message = "Invalid 'input_file_id': 'wrong-id'. Expected an ID that begins with 'file'."
    answer = _create(sim_server, input_file_id="wrong-id")
    assert_refused(answer, 400, message, param="input_file_id", code="invalid_value")


@pytest.mark.parametrize("file_id", ["", "file-\0", "file-" + "x" * 10_000, "file-\n", "\u2603"])
def test_item_52_a_hostile_file_id_is_400(sim_server: Server, file_id: str) -> None:
    assert_refused(_create(sim_server, input_file_id=file_id), 400, param="input_file_id", code="invalid_value")


def test_item_53_an_unknown_file_fails_the_batch_and_not_the_request(sim_server: Server) -> None:
    status, _, batch = _create(sim_server)
    assert (status, batch["status"]) == (200, "validating")
    batch = sim_server.wait(batch["id"])
    assert batch["status"] == "failed"
    (fault,) = batch["errors"]["data"]
    assert (fault["code"], fault["param"], fault["line"]) == ("invalid_request", "file_id", None)
    assert fault["message"].startswith(f"Cannot find file {UNKNOWN_FILE}, or organization ")


def test_item_53_a_file_of_another_purpose_is_400(sim_server: Server) -> None:
    file_id = sim_server.upload(LINE, purpose="user_data")
    assert_refused(_create(sim_server, input_file_id=file_id), 400, param="input_file_id")


@pytest.mark.parametrize("seconds", [3600, 2_592_000])
def test_item_54_output_expires_after_counts_from_the_files_own_creation(sim_server: Server, seconds: int) -> None:
    wanted = {"anchor": "created_at", "seconds": seconds}
    lines = [chat_line("good"), chat_line("bad", "[[sim:400]]")]
    batch = sim_server.wait(sim_server.create(lines, output_expires_after=wanted))
    for file_id in (batch["output_file_id"], batch["error_file_id"]):
        file = sim_server.request("GET", f"/v1/files/{file_id}")[2]
        assert file["expires_at"] == file["created_at"] + seconds
        assert file["created_at"] >= batch["finalizing_at"]


@pytest.mark.parametrize(
    ("value", "param", "code"),
    [
        ({"anchor": "created_at"}, "output_expires_after.seconds", "missing_required_parameter"),
        ({"seconds": 3600}, "output_expires_after.anchor", "missing_required_parameter"),
        ({"anchor": "x", "seconds": 3600}, "output_expires_after.anchor", "invalid_value"),
        ({"anchor": ["x"], "seconds": 3600}, "output_expires_after.anchor", "invalid_value"),
        ({"anchor": "created_at", "seconds": 3599}, "output_expires_after.seconds", "integer_below_min_value"),
        ({"anchor": "created_at", "seconds": 10**18}, "output_expires_after.seconds", "integer_above_max_value"),
        ({"anchor": "created_at", "seconds": 3600.0}, "output_expires_after.seconds", "invalid_type"),
        ({"anchor": "created_at", "seconds": True}, "output_expires_after.seconds", "invalid_type"),
        ({"anchor": "created_at", "seconds": 10**30}, "output_expires_after.seconds", None),
        ("1h", "output_expires_after", "invalid_type"),
    ],
)
def test_item_54_a_lifetime_that_makes_no_sense_is_400(sim_server: Server, value: Any, param: str, code: Any) -> None:
    answer = _create(sim_server, output_expires_after=value)
    assert_refused(answer, 400, param=param, **({"code": code} if code else {}))


def test_item_55_no_model_is_needed_and_an_unknown_field_does_no_harm(sim_server: Server) -> None:
    assert _create(sim_server)[0] == 200
    status, _, batch = _create(sim_server, model="something", extra={"deep": [1]})
    assert (status, batch["model"]) == (200, None)


def test_a_lenient_request_names_only_its_file_and_model(sim_server: Server) -> None:
    file_id = sim_server.upload(chat_line("1", model=None) + chat_line("2"))
    wanted = {"input_file_id": file_id, "metadata": {"model": MODEL}}
    status, _, batch = sim_server.request("POST", "/v1/batches", wanted)
    assert (status, batch["endpoint"], batch["completion_window"]) == (200, "/v1/chat/completions", "24h")
    batch = sim_server.wait(batch["id"])
    assert (batch["status"], batch["model"], batch["request_counts"]["completed"]) == ("completed", MODEL, 2)


def test_a_lenient_request_for_a_file_that_is_not_there_still_needs_its_endpoint(sim_server: Server) -> None:
    wanted = {"input_file_id": UNKNOWN_FILE, "metadata": {"model": MODEL}}
    answer = sim_server.request("POST", "/v1/batches", wanted)
    assert_refused(answer, 400, param="endpoint", code="missing_required_parameter")


@pytest.mark.parametrize(("method", "tail"), [("GET", ""), ("POST", "/cancel")])
def test_item_90_an_unknown_batch_is_404_and_no_batch_id_400(
    sim_server: Server, other_key: str, method: str, tail: str
) -> None:
    unknown = "batch_" + "0" * 32
    answer = sim_server.request(method, f"/v1/batches/{unknown}{tail}")
    assert_refused(answer, 404, f"No batch found with id '{unknown}'.", param=None, code=None)
    answer = sim_server.request(method, f"/v1/batches/invalid{tail}")
    message = "Invalid 'batch_id': 'invalid'. Expected an ID that begins with 'batch'."
    assert_refused(answer, 400, message, param="batch_id", code="invalid_value")
    foreign = _create(sim_server)[2]["id"]
    answer = sim_server.request(method, f"/v1/batches/{foreign}{tail}", key=other_key)
    assert_refused(answer, 404, f"No batch found with id '{foreign}'.")


@pytest.fixture(scope="module")
def many(sim_server: Server) -> tuple[str, list[str]]:
    """A key of a project with 25 batches, made within the same second or two, and their ids."""
    key = sim_server.new_key(f"many-{uuid4().hex[:8]}")
    headers = {"Authorization": f"Bearer {key}"}
    made = [sim_server.request("POST", "/v1/batches", WANTED, headers=headers)[2]["id"] for _ in range(25)]
    return key, made


def test_item_91_batches_are_listed_newest_first_twenty_at_a_time(
    sim_server: Server, many: tuple[str, list[str]]
) -> None:
    key, made = many
    # They fail in the background; what is listed and what is shown can only be the same once that is over.
    wait_until(lambda: sim_server.request("GET", f"/v1/batches/{made[-1]}", key=key)[2]["status"] == "failed")
    status, _, page = sim_server.request("GET", "/v1/batches", key=key)
    assert status == 200
    assert set(page) == {"object", "data", "first_id", "last_id", "has_more"}
    assert [batch["id"] for batch in page["data"]] == made[:4:-1]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (made[-1], made[5], True)
    assert sim_server.request("GET", f"/v1/batches/{made[-1]}", key=key)[2] == page["data"][0]


@pytest.mark.parametrize("limit", [1, 7, 25, 100])
def test_item_91_pages_of_any_size_hold_each_batch_once_also_with_equal_timestamps(
    sim_server: Server, many: tuple[str, list[str]], limit: int
) -> None:
    key, made = many
    sim_server.query("UPDATE batches_batch SET created_at = '2026-01-01' WHERE id = ANY(%s) RETURNING 1", made[:20])
    found, after = [], ""
    while True:
        page = sim_server.request("GET", f"/v1/batches?limit={limit}{after}", key=key)[2]
        found += [batch["id"] for batch in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={found[-1]}"
    assert sorted(found) == sorted(made)


@pytest.mark.parametrize("limit", ["0", "101", "x", "--5"])
def test_item_91_a_limit_out_of_bounds_is_400(sim_server: Server, limit: str) -> None:
    assert_refused(sim_server.request("GET", f"/v1/batches?limit={limit}"), 400, param="limit")


def test_item_91_an_unknown_or_foreign_cursor_is_400(sim_server: Server, many: tuple[str, list[str]]) -> None:
    for after in ("batch_" + "0" * 32, many[1][0], "%00"):
        answer = sim_server.request("GET", f"/v1/batches?after={after}")
        assert answer[0] == (200 if after == "%00" else 400)
