"""Items 71 to 83: running a batch, and what is in its files."""

import json
import re
from typing import Any

import httpx
import pytest
from openai import OpenAI

from vbatch_site.tests.servers import EMBEDDING_MODEL, MODEL, TERMINAL, Server, chat_line

TIMES = ["created_at", "in_progress_at", "finalizing_at", "completed_at"]


def _run(server: Server, *lines: str, **fields: Any) -> dict[str, Any]:
    return server.wait(server.create(lines, **fields))


def _watch(server: Server, batch_id: str) -> list[dict[str, Any]]:
    """Return every different state of a batch that polling shows, up to its end."""
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["status"] not in TERMINAL:
        batch = server.batch(batch_id)
        if not seen or batch != seen[-1]:
            seen.append(batch)
    return seen


@pytest.fixture(scope="module")
def watched(sim_server: Server) -> list[dict[str, Any]]:
    """All that could be seen of a batch of good lines and a bad one."""
    # Long enough that a poller which is held up sees a part of them done.
    lines = [chat_line(str(i), "[[sim:slow:1.5]]" if i % 2 else "hello") for i in range(40)]
    return _watch(sim_server, sim_server.create([*lines, chat_line("bad", "[[sim:400]]")]))


def test_item_71_a_batch_goes_through_its_states_in_order(sim_server: Server, watched: list[dict[str, Any]]) -> None:
    order = ["validating", "in_progress", "finalizing", "completed"]
    seen = list(dict.fromkeys(batch["status"] for batch in watched))
    assert seen == [status for status in order if status in seen]
    journal = sim_server.query(
        "SELECT status FROM batches_batchevent WHERE batch_id = %s ORDER BY id", watched[0]["id"]
    )
    assert [status for (status,) in journal] == order


def test_item_71_each_timestamp_is_set_once_and_none_goes_back(watched: list[dict[str, Any]]) -> None:
    times = [watched[-1][name] for name in TIMES]
    assert times == sorted(times)
    for name in TIMES:
        assert len({batch[name] for batch in watched} - {None}) == 1
    assert {watched[-1][name] for name in ("failed_at", "expired_at", "cancelling_at", "cancelled_at")} == {None}


def test_item_71_counts_never_go_back_and_never_exceed_the_total(watched: list[dict[str, Any]]) -> None:
    done = [batch["request_counts"]["completed"] + batch["request_counts"]["failed"] for batch in watched]
    assert done == sorted(done)
    assert done[-1] == 41
    assert any(0 < count < 41 for count in done)


def test_item_72_model_and_total_are_known_once_it_runs(watched: list[dict[str, Any]]) -> None:
    for batch in watched:
        if batch["status"] == "validating":
            assert (batch["model"], batch["request_counts"]["total"]) == (None, 0)
        else:
            assert (batch["model"], batch["request_counts"]["total"]) == (MODEL, 41)


def test_item_73_the_end_and_the_files_become_visible_together(
    sim_server: Server, watched: list[dict[str, Any]]
) -> None:
    more = [batch for _ in range(3) for batch in _watch(sim_server, sim_server.create([chat_line("1")]))]
    for batch in [*watched, *more]:
        assert (batch["output_file_id"] is not None) == (batch["status"] == "completed")


def test_item_74_a_good_and_a_bad_request_end_in_different_files(sim_server: Server) -> None:
    batch = _run(sim_server, chat_line("good"), chat_line("bad", "[[sim:400]]"))
    output, errors = sim_server.lines(batch)
    assert [line["custom_id"] for line in output] == ["good"]
    assert [line["custom_id"] for line in errors] == ["bad"]
    assert batch["request_counts"] == {"total": 2, "completed": 1, "failed": 1}


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (chat_line("1", "[[sim:400]]"), 400),
        (chat_line("1", max_tokens=-1), 400),
        (chat_line("1", temperature=-1), 400),
    ],
    ids=["marker", "max_tokens", "temperature"],
)
def test_item_75_a_refused_line_has_its_status_and_openais_envelope(sim_server: Server, line: str, status: int) -> None:
    _, (found,) = sim_server.lines(_run(sim_server, chat_line("good"), line))
    assert list(found) == ["id", "custom_id", "response", "error"]
    assert found["error"] is None
    assert list(found["response"]) == ["status_code", "request_id", "body"]
    assert found["response"]["status_code"] == status
    assert set(found["response"]["body"]) == {"error"}
    error = found["response"]["body"]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and error["message"]


def test_item_76_a_batch_without_a_success_is_completed_and_has_no_output(sim_server: Server) -> None:
    batch = _run(sim_server, chat_line("1", "[[sim:400]]"), chat_line("2", "[[sim:400]]"))
    assert (batch["status"], batch["output_file_id"]) == ("completed", None)
    assert batch["request_counts"] == {"total": 2, "completed": 0, "failed": 2}
    assert len(sim_server.content(batch["error_file_id"])) == 2
    assert batch["errors"] is None


def test_item_77_a_batch_without_a_failure_has_no_error_file(sim_server: Server) -> None:
    batch = _run(sim_server, chat_line("1"))
    assert (batch["status"], batch["error_file_id"]) == ("completed", None)


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("/v1/chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": "x"}]}, "chat.completion"),
        ("/v1/completions", {"model": MODEL, "prompt": "x"}, "text_completion"),
        ("/v1/responses", {"model": MODEL, "input": "x"}, "response"),
        ("/v1/embeddings", {"model": EMBEDDING_MODEL, "input": ["x", "y"]}, "list"),
        ("/v1/score", {"model": EMBEDDING_MODEL, "text_1": "x", "text_2": ["y"]}, "list"),
        ("/v1/rerank", {"model": EMBEDDING_MODEL, "query": "x", "documents": ["y"]}, None),
    ],
)
def test_item_78_a_body_is_the_endpoints_answer_as_an_object(
    sim_server: Server, endpoint: str, body: dict[str, Any], kind: str | None
) -> None:
    line = json.dumps({"custom_id": "1", "method": "POST", "url": endpoint, "body": body})
    batch = _run(sim_server, line, endpoint=endpoint)
    ((found,), _) = sim_server.lines(batch)
    assert list(found) == ["id", "custom_id", "response", "error"]
    assert (found["error"], found["response"]["status_code"]) == (None, 200)
    assert isinstance(found["response"]["request_id"], str) and found["response"]["request_id"]
    assert isinstance(found["response"]["body"], dict)
    assert found["response"]["body"].get("object") == kind
    assert (batch["endpoint"], batch["model"]) == (endpoint, body["model"])


def test_items_79_and_80_every_line_ends_once_under_an_id_of_its_own(sim_server: Server) -> None:
    wanted = [str(i) for i in range(300)]
    batch = _run(sim_server, *(chat_line(i, "[[sim:400]]" if int(i) % 7 == 0 else "hello") for i in wanted))
    output, errors = sim_server.lines(batch)
    assert sorted(line["custom_id"] for line in output + errors) == sorted(wanted)
    assert len(output) == batch["request_counts"]["completed"]
    assert len(errors) == batch["request_counts"]["failed"]
    ids = [line["id"] for line in output + errors]
    assert len(set(ids)) == 300
    assert all(re.fullmatch("batch_req_[0-9a-f]{32}", line_id) for line_id in ids)


def test_item_81_result_files_are_files_like_any_other(sim_server: Server) -> None:
    batch = _run(sim_server, chat_line("good"), chat_line("bad", "[[sim:400]]"))
    for kind in ("output", "error"):
        file = sim_server.request("GET", f"/v1/files/{batch[f'{kind}_file_id']}")[2]
        assert (file["purpose"], file["status"]) == ("batch_output", "processed")
        assert file["filename"] == f"{batch['id']}_{kind}.jsonl"
        assert file["expires_at"] == file["created_at"] + 2_592_000
        status, headers, content = sim_server.request("GET", f"/v1/files/{file['id']}/content")
        assert (status, len(content), int(headers["content-length"])) == (200, file["bytes"], file["bytes"])
        assert content.endswith(b"}\n")


def test_item_81_result_files_of_another_tenant_are_404(sim_server: Server, other_key: str) -> None:
    batch = _run(sim_server, chat_line("1"))
    path = f"/v1/files/{batch['output_file_id']}/content"
    assert sim_server.request("GET", path, key=other_key)[0] == 404


def test_item_82_usage_is_the_sum_over_successful_lines(sim_server: Server) -> None:
    shared = "the same beginning of every prompt " * 20
    lines = [chat_line(str(i), f"{shared}{i}") for i in range(9)]
    batch = _run(sim_server, *lines, chat_line("bad", "[[sim:400]]"))
    output, _ = sim_server.lines(batch)
    usages = [line["response"]["body"]["usage"] for line in output]
    assert len(usages) == 9
    entered = sum(usage["prompt_tokens"] for usage in usages)
    left = sum(usage["completion_tokens"] for usage in usages)
    cached = sum((usage["prompt_tokens_details"] or {}).get("cached_tokens") or 0 for usage in usages)
    assert entered and left
    assert batch["usage"] == {
        "input_tokens": entered,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": left,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": entered + left,
    }


def test_item_83_custom_ids_come_back_as_they_were_sent(sim_server: Server) -> None:
    ids = [
        "cz_15430|indikace|p1",
        "\u8981\u6c42-\U0001f600-\u00e9\u0301",
        "x" * 300,
        "x" * 100_000,
        "",
        " ",
        'quote " backslash \\ newline \n tab \t',
        "\u2028\u2029\x7f\ufeff",
        "{}",
        "null",
    ]
    output, _ = sim_server.lines(_run(sim_server, *(chat_line(custom_id) for custom_id in ids)))
    assert sorted(line["custom_id"] for line in output) == sorted(ids)


def test_item_83_custom_ids_of_refused_lines_come_back_too(sim_server: Server) -> None:
    ids = ["a|b", "\u8981\u6c42", 'quote "']
    _, errors = sim_server.lines(_run(sim_server, *(chat_line(custom_id, "[[sim:400]]") for custom_id in ids)))
    assert sorted(line["custom_id"] for line in errors) == sorted(ids)


def test_no_line_of_ours_is_broken_by_readers_that_know_more_line_ends_than_json_lines(sim_server: Server) -> None:
    ends = "\u0085\u2028\u2029"
    lines = [chat_line(f"good {ends}", f"say {ends}"), chat_line(f"refused {ends}", "[[sim:400]]")]
    lines.append(chat_line(f"bad {ends}").replace("POST", "POST\u2028"))
    batch = sim_server.wait(sim_server.create(lines, on_invalid_line="skip"))
    client = OpenAI(base_url=sim_server.base_url, api_key=sim_server.key)
    output = list(client.files.content(batch["output_file_id"]).iter_lines())
    errors = list(client.files.content(batch["error_file_id"]).iter_lines())
    assert [json.loads(line)["custom_id"] for line in output] == [f"good {ends}"]
    assert json.loads(output[0])["response"]["body"]["choices"][0]["message"]["content"] == f"echo: say {ends}"
    assert [json.loads(line)["custom_id"] for line in errors] == [f"refused {ends}", f"bad {ends}"]
    assert "\u2028" in json.loads(errors[1])["error"]["message"]
    headers = {"Authorization": f"Bearer {sim_server.key}"}
    path = f"{sim_server.base_url}/batches/{batch['id']}/results"
    with httpx.stream("GET", path, headers=headers, timeout=60) as response:
        assert sorted(response.iter_lines()) == sorted(output + errors)
    with httpx.stream("GET", path, headers={**headers, "Accept": "text/event-stream"}, timeout=60) as response:
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert sorted(data[:-1]) == sorted(output + errors)
