"""continue_from: only lines that are new, changed or failed run, and one output holds all answers."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from batches.carrying import fingerprint
from batches.models import Batch
from batches.states import BatchStatus
from batches.sweep import delete_unneeded_bytes
from batches.validation import parse_line
from files import storage
from files.models import File
from vbatch_site.models import Project
from vbatch_site.tests.contract.forms import assert_refused
from vbatch_site.tests.servers import MODEL, Server, chat_line, wait_until

OTHER = "Qwen/Qwen2.5-0.5B-Instruct"


def _ended(server: Server, *lines: str, **fields: Any) -> dict[str, Any]:
    return server.wait(server.create(lines, **fields))


def _ran(server: Server, tag: str) -> list[str]:
    """Return what the engine was asked under a tag, without it."""
    return sorted(text.removeprefix(tag) for text in server.requests_seen() if text.startswith(tag))


def _texts(lines: list[dict[str, Any]]) -> dict[str, str]:
    return {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}


def test_only_new_changed_and_failed_lines_run_and_the_output_is_whole(sim_server: Server) -> None:
    first = _ended(
        sim_server,
        *(chat_line(str(i), f"first {i}") for i in range(50)),
        chat_line("failed", "first [[sim:400]]"),
        chat_line("gone", "first gone"),
    )
    lines = [chat_line(str(i), f"first {i}" if i != 7 else "second 7") for i in range(50)]
    # Keys in another order and white space are no change.
    moved = json.loads(lines[3])
    moved["body"] = dict(reversed(moved["body"].items()))
    lines[3] = json.dumps(moved, separators=(" ,  ", " : ")) + "\n"
    lines += [chat_line("failed", "second failed"), chat_line("new", "second new")]
    before = _ran(sim_server, "first ")
    second = _ended(sim_server, *reversed(lines), continue_from=first["id"])
    assert _ran(sim_server, "second ") == ["7", "failed", "new"]
    assert _ran(sim_server, "first ") == before
    output, errors = sim_server.lines(second)
    assert errors == []
    assert second["request_counts"] == {"total": 52, "completed": 52, "failed": 0}
    assert (second["vbatch"]["continue_from"], second["vbatch"]["carried"]) == (first["id"], 49)
    old, new = (_texts(sim_server.content(batch["output_file_id"])) for batch in (first, second))
    assert set(new) == {*map(str, range(50)), "failed", "new"}
    assert {name for name in new if old.get(name) != new[name]} == {"7", "failed", "new"}
    answers = {line["custom_id"]: line["response"] for line in sim_server.content(first["output_file_id"])}
    assert all(
        line["response"] == answers[line["custom_id"]]
        for line in output
        if line["custom_id"].isdigit() and line["custom_id"] != "7"
    )
    # Order of the new file.
    assert [line["custom_id"] for line in output] == ["new", "failed", *map(str, reversed(range(50)))]
    # Usage is what this batch computed.
    computed = [line["response"]["body"]["usage"] for line in output if line["custom_id"] in ("7", "failed", "new")]
    assert second["usage"]["total_tokens"] == sum(usage["total_tokens"] for usage in computed)


def test_another_model_or_endpoint_is_a_change(sim_server: Server) -> None:
    first = _ended(sim_server, chat_line("a", "models a"), chat_line("b", "models b"))
    mixed = [chat_line("a", "models a", model=OTHER), chat_line("b", "models b")]
    _ended(sim_server, *mixed, continue_from=first["id"], allow_mixed_models=True)
    assert _ran(sim_server, "models ") == ["a", "a", "b"]
    line = {
        "custom_id": "a",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": MODEL, "prompt": "models c"},
    }
    done = _ended(sim_server, json.dumps(line), continue_from=first["id"], endpoint="/v1/completions")
    assert done["request_counts"]["completed"] == 1
    assert _ran(sim_server, "models ") == ["a", "a", "b", "c"]


def test_a_model_that_the_batch_names_counts_as_the_lines_own(sim_server: Server) -> None:
    first = _ended(sim_server, chat_line("a", "named a", model=None), metadata={"model": MODEL})
    second = _ended(sim_server, chat_line("a", "named a"), continue_from=first["id"])
    third = _ended(
        sim_server, chat_line("a", "named a", model=None), metadata={"model": OTHER}, continue_from=second["id"]
    )
    assert _ran(sim_server, "named ") == ["a", "a"]
    assert [batch["request_counts"]["completed"] for batch in (second, third)] == [1, 1]


def test_a_file_without_a_change_runs_nothing_and_completes(sim_server: Server) -> None:
    lines = [chat_line(str(i), f"nothing {i}") for i in range(600)]
    first = _ended(sim_server, *lines)
    second = _ended(sim_server, *lines, continue_from=first["id"])
    assert len(_ran(sim_server, "nothing ")) == 600
    assert (second["status"], second["model"]) == ("completed", MODEL)
    assert second["request_counts"] == {"total": 600, "completed": 600, "failed": 0}
    assert _texts(sim_server.content(second["output_file_id"])) == _texts(sim_server.content(first["output_file_id"]))


def test_answers_are_carried_along_a_chain_also_through_a_batch_that_failed(sim_server: Server) -> None:
    lines = [chat_line(str(i), f"chain {i}") for i in range(10)]
    first = _ended(sim_server, *lines[:5])
    second = _ended(sim_server, *lines[:8], continue_from=first["id"])
    failed = _ended(sim_server, *lines, "not JSON\n", continue_from=second["id"])
    assert failed["status"] == "failed"
    third = _ended(sim_server, *lines, continue_from=failed["id"])
    assert _ran(sim_server, "chain ") == [str(i) for i in range(10)]
    assert sorted(_texts(sim_server.content(third["output_file_id"]))) == [str(i) for i in range(10)]


def test_what_a_cancelled_batch_finished_is_carried(sim_server: Server) -> None:
    lines = [chat_line("done", "stopped done"), chat_line("left", "stopped left [[sim:hang]]")]
    batch_id = sim_server.create(lines)
    wait_until(lambda: sim_server.batch(batch_id)["request_counts"]["completed"] == 1)
    sim_server.request("POST", f"/v1/batches/{batch_id}/cancel")
    sim_server.wait(batch_id)
    second = _ended(sim_server, lines[0], chat_line("left", "stopped left"), continue_from=batch_id)
    assert second["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    assert _ran(sim_server, "stopped ").count("done") == 1


def test_bad_lines_and_repeated_ids_of_the_earlier_file_are_not_taken_for_answered_ones(sim_server: Server) -> None:
    first = _ended(
        sim_server,
        chat_line("a", "twice a", stream=True),
        chat_line("a", "twice a"),
        chat_line("b", "twice b"),
        '{"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": 1}\n',
        on_invalid_line="skip",
    )
    assert first["request_counts"] == {"total": 4, "completed": 2, "failed": 2}
    second = _ended(sim_server, chat_line("a", "twice a"), chat_line("b", "twice b"), continue_from=first["id"])
    assert second["request_counts"] == {"total": 2, "completed": 2, "failed": 0}
    # Which of the two lines named "a" was answered is not known, so it runs again.
    assert _ran(sim_server, "twice ") == ["a", "a", "b"]


def test_bad_lines_are_skipped_beside_lines_that_are_carried(sim_server: Server) -> None:
    first = _ended(sim_server, chat_line("a", "beside a"))
    fields = {"continue_from": first["id"], "on_invalid_line": "skip"}
    second = _ended(sim_server, chat_line("a", "beside a"), "x\n", chat_line("b", "beside b"), **fields)
    output, errors = sim_server.lines(second)
    assert [line["custom_id"] for line in output] == ["a", "b"]
    assert [line["error"]["line"] for line in errors] == [2]
    assert second["request_counts"] == {"total": 3, "completed": 2, "failed": 1}


@pytest.mark.parametrize(
    ("value", "code"),
    [(7, "invalid_type"), ("wrong", "invalid_value"), ("batch_0", "batch_not_found"), ("batch\0", "batch_not_found")],
)
def test_a_wrong_batch_to_continue_from_is_refused(sim_server: Server, value: Any, code: str) -> None:
    wanted = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    answer = sim_server.request("POST", "/v1/batches", {**wanted, "continue_from": value})
    assert_refused(answer, 400, param="continue_from", code=code)


def test_a_batch_of_another_project_or_one_that_runs_is_refused(sim_server: Server) -> None:
    stranger = sim_server.new_key("strangers")
    running = sim_server.create([chat_line("a", "[[sim:hang]]")])
    wanted = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    wanted["continue_from"] = running
    answer = sim_server.request("POST", "/v1/batches", wanted, key=stranger)
    assert_refused(answer, 400, param="continue_from", code="batch_not_found")
    answer = sim_server.request("POST", "/v1/batches", wanted)
    assert_refused(answer, 400, param="continue_from", code="batch_not_ended")
    sim_server.request("POST", f"/v1/batches/{running}/cancel")
    sim_server.wait(running)


@pytest.mark.parametrize("kind", ["input_file_id", "output_file_id"])
def test_a_batch_whose_files_are_deleted_is_refused(sim_server: Server, kind: str) -> None:
    first = _ended(sim_server, chat_line("a"))
    sim_server.request("DELETE", f"/v1/files/{first[kind]}")
    wanted = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    answer = sim_server.request("POST", "/v1/batches", {**wanted, "continue_from": first["id"]})
    assert_refused(answer, 400, param="continue_from", code="batch_files_gone")


def test_files_whose_bytes_are_lost_fail_the_batch_with_that_reason(sim_server: Server) -> None:
    first = _ended(sim_server, chat_line("a"))
    ((path,),) = sim_server.query("SELECT path FROM files_file WHERE id = %s", first["output_file_id"])
    (sim_server.home / "files" / path).unlink()
    second = _ended(sim_server, chat_line("a"), continue_from=first["id"])
    assert second["status"] == "failed"
    assert [(e["code"], e["param"], e["line"]) for e in second["errors"]["data"]] == [
        ("batch_files_gone", "continue_from", None)
    ]


def test_lines_with_a_number_that_no_type_holds_are_compared_as_they_are_written() -> None:
    one, other = (parse_line(chat_line("a", top_k=7).replace("7", number).encode()) for number in ("1e400", "1e401"))
    assert fingerprint(one, MODEL) == fingerprint(one, MODEL)
    assert len({fingerprint(one, MODEL), fingerprint(other, MODEL), fingerprint(one, OTHER)}) == 3


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_bytes_of_deleted_files_stay_until_the_batch_that_continues_is_validated() -> None:
    project, now = Project.default(), timezone.now()
    fields = {"project": project, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    files = [
        File.objects.create(project=project, purpose="batch", filename="f", bytes=1, path=f"kept-{i}", deleted_at=now)
        for i in range(2)
    ]
    for file in files:
        with storage.writing(file.path) as out:
            out.write(b"x")
    earlier = Batch.begin(window=timedelta(hours=1), input_file_id=files[0].pk, output_file_id=files[1].pk, **fields)
    earlier.move(BatchStatus.FAILED)
    later = Batch.begin(window=timedelta(hours=1), input_file_id="file-x", continue_from=earlier.pk, **fields)
    delete_unneeded_bytes()
    assert File.objects.filter(pk__in=[file.pk for file in files]).count() == 2
    storage.opened(files[1].path).close()
    later.move(BatchStatus.IN_PROGRESS)
    delete_unneeded_bytes()
    assert not File.objects.filter(pk__in=[file.pk for file in files]).exists()
