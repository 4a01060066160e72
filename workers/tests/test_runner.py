"""What the runner promises while everything lives, with the simulated engine."""

import json
import resource
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from vbatch_site.tests.servers import MODEL, Server, chat_line, wait_until
from workers.lines import fill_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose engine takes 200 lines a second, and whose batches may have a window of six."""
    knobs = {"VBATCH_SIM_LINES_PER_SECOND": "200", "VBATCH_SIM_CONCURRENCY": "32"}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Its processes are to raise what they begin with.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    try:
        with Server(tmp_path_factory.mktemp("runner"), VBATCH_COMPLETION_WINDOWS="24h,6s", **knobs) as server:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            yield server
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_faults_of_the_engine_are_tried_again_and_refusals_are_not(new_home: Path) -> None:
    markers = {
        "fine": "hello",
        "once": "[[sim:503once]] hello",
        "always": "[[sim:500]]",
        "refused": "[[sim:400]]",
        "garbage": "[[sim:garbage]]",
        "cut": "[[sim:truncate]]",
        "lie": "[[sim:200error]]",
        "bytes": "[[sim:bytes]]",
        "hang": "[[sim:hang]]",
    }
    with Server(new_home, VBATCH_REQUEST_TIMEOUT="3") as server:
        batch = server.wait(server.create(chat_line(name, text) for name, text in markers.items()))
        output, errors = server.lines(batch)
        assert {line["custom_id"] for line in output} == {"fine", "once"}
        by_id = {line["custom_id"]: line for line in errors}
        assert by_id["always"]["response"]["status_code"] == 500
        assert by_id["refused"]["response"]["status_code"] == 400
        codes = {name: by_id[name]["error"]["code"] for name in ("garbage", "cut", "lie", "bytes", "hang")}
        assert codes == {
            "garbage": "invalid_answer",
            "cut": "connection_lost",
            "lie": "invalid_answer",
            "bytes": "invalid_answer",
            "hang": "request_timeout",
        }
        seen = server.requests_seen()
        assert seen.count("[[sim:500]]") == seen.count("[[sim:hang]]") == 3
        assert seen.count("[[sim:400]]") == seen.count("hello") == 1


def test_a_model_that_cannot_be_loaded_fails_every_line_and_ends_the_batch(broken_server: Server) -> None:
    server = broken_server
    batch = server.wait(server.create(chat_line(f"l{i}") for i in range(600)))
    output, errors = server.lines(batch)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 600, "completed": 0, "failed": 600}
    assert not output
    assert {line["error"]["code"] for line in errors} == {"model_load_failed"}
    assert len({line["custom_id"] for line in errors}) == 600
    failed = "SELECT name, load_error <> '' FROM workers_servedmodel WHERE load_failed_at IS NOT NULL"
    assert (MODEL, True) in server.query(failed)


def test_a_folder_that_is_no_model_is_named_in_every_line(new_home: Path) -> None:
    # No engine is started: the folder is looked at first.
    with Server(new_home, VBATCH_ENGINE="vllm") as server:
        folder = new_home / "not-a-model"
        folder.mkdir()
        server.add_model("broken", str(folder))
        batch = server.wait(server.create(chat_line("a", model="broken")))
        _, errors = server.lines(batch)
        assert errors[0]["error"]["code"] == "model_load_failed"
        assert "no config.json" in errors[0]["error"]["message"]


def test_a_worker_may_have_as_many_lines_in_an_engine_as_the_machine_allows(server: Server) -> None:
    wait_until(lambda: server.query("SELECT pid FROM workers_worker") != [])
    for (pid,) in server.query("SELECT pid FROM workers_worker"):
        soft, hard = psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE)
        assert soft == hard


def test_a_line_without_a_model_gets_one_and_keeps_the_bytes_of_the_rest() -> None:
    assert fill_model(b'{"a": [1e400, 1.0]}', "m") == b'{"model":"m","a": [1e400, 1.0]}'
    assert json.loads(fill_model(b"{ }", "m")) == {"model": "m"}
    assert fill_model(b'{"model": null, "a": 1e400}', "m") == b'{"model":"m","a":1e400}'
    assert fill_model(b'{"model": "own", "a": "model"}', "m") == b'{"model": "own", "a": "model"}'


def test_two_models_take_turns_on_one_slot_and_a_loaded_one_is_kept(server: Server) -> None:
    other = "Qwen/Qwen2.5-0.5B-Instruct"
    loads = "SELECT count(*) FROM workers_service"
    before = server.query(loads)[0][0]
    ids = [
        server.create(chat_line(f"l{i}", model=model) for i in range(100))
        for model in (other, other, "google/gemma-3-4b-it", other)
    ]
    for batch_id in ids:
        assert server.wait(batch_id)["request_counts"]["completed"] == 100
    assert 2 <= server.query(loads)[0][0] - before <= 3


def test_a_batch_past_its_window_expires_and_keeps_what_is_done(server: Server) -> None:
    # The window is for lines, and not for loading their model.
    server.wait(server.create([chat_line("warm")]))
    batch_id = server.create((chat_line(f"l{i}") for i in range(2000)), completion_window="6s")
    batch = server.wait(batch_id)
    output, errors = server.lines(batch)
    assert batch["status"] == "expired"
    assert batch["request_counts"]["failed"] == 0
    assert len(output) == batch["request_counts"]["completed"] > 0
    assert len(output) + len(errors) == 2000
    assert {line["error"]["code"] for line in errors} == {"batch_expired"}


def test_a_deleted_input_file_is_kept_until_its_batch_ends(server: Server) -> None:
    batch_id = server.create(chat_line(f"l{i}") for i in range(600))
    wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > 50)
    file_id = server.batch(batch_id)["input_file_id"]
    assert server.request("DELETE", f"/v1/files/{file_id}")[0] == 200
    assert server.request("GET", f"/v1/files/{file_id}")[0] == 404
    assert server.wait(batch_id)["request_counts"]["completed"] == 600
    wait_until(lambda: server.query("SELECT 1 FROM files_file WHERE id = %s", file_id) == [])
    assert not [p for p in (server.home / "files").rglob("*") if p.name == file_id]


def _paused(server: Server, lines: int) -> tuple[str, Path]:
    """Return a batch that no worker has in hand, and its input file."""
    batch_id = server.create(chat_line(f"l{i}") for i in range(lines))
    assert server.request("POST", f"/v1/batches/{batch_id}/pause")[0] == 200
    leases = "SELECT 1 FROM batches_shard WHERE batch_id = %s AND state = 'leased'"
    wait_until(lambda: server.batch(batch_id)["status"] == "in_progress" and not server.query(leases, batch_id))
    path = "SELECT f.path FROM files_file f JOIN batches_batch b ON b.input_file_id = f.id WHERE b.id = %s"
    return batch_id, server.home / "files" / server.query(path, batch_id)[0][0]


def test_a_batch_waits_for_a_file_that_can_not_be_read_for_now_and_ends_with_one_that_is_lost(server: Server) -> None:
    waits, file = _paused(server, 200)
    lost, gone = _paused(server, 5)
    away = file.rename(file.with_name("away"))
    file.symlink_to(file)  # leads round and round, which root can't read either
    gone.unlink()
    said = server.log.stat().st_size
    for batch_id in (waits, lost):
        assert server.request("POST", f"/v1/batches/{batch_id}/resume")[0] == 200
    _, errors = server.lines(server.wait(lost))
    assert [(line["error"]["code"], line["error"]["line"]) for line in errors] == [
        ("input_file_lost", number) for number in range(1, 6)
    ]
    wait_until(lambda: b"input file can't be read" in server.log.read_bytes()[said:])
    assert server.batch(waits)["status"] == "in_progress"
    away.replace(file)
    assert server.wait(waits)["request_counts"] == {"total": 200, "completed": 200, "failed": 0}


def test_lines_without_a_model_run_with_the_batch_s_own(server: Server) -> None:
    body = {"input_file_id": server.upload(chat_line("a", model=None)), "metadata": {"model": MODEL}}
    status, _, created = server.request("POST", "/v1/batches", body)
    assert status == 200, created
    assert (created["endpoint"], created["completion_window"]) == ("/v1/chat/completions", "24h")
    batch = server.wait(created["id"])
    output, _ = server.lines(batch)
    assert output[0]["response"]["body"]["model"] == MODEL


def test_equal_requests_without_chance_are_computed_once_and_answered_each(server: Server) -> None:
    before = len(server.requests_seen())
    texts = [f"question {i % 7}" for i in range(100)]
    lines = [chat_line(f"l{i}", text, temperature=0) for i, text in enumerate(texts)]
    lines += [chat_line(f"warm{i}", "by chance", temperature=1) for i in range(5)]
    batch = server.wait(server.create(lines))
    output, errors = server.lines(batch)
    assert not errors
    assert len({line["id"] for line in output}) == len({line["custom_id"] for line in output}) == 105
    for line in output:
        if line["custom_id"].startswith("l"):
            text = line["response"]["body"]["choices"][0]["message"]["content"]
            assert text == f"echo: {texts[int(line['custom_id'][1:])]}"
    assert len(server.requests_seen()) - before == 7 + 5
    assert batch["request_counts"] == {"total": 105, "completed": 105, "failed": 0}


def test_a_small_batch_of_another_project_does_not_wait_for_a_large_one(server: Server) -> None:
    big = server.create(chat_line(f"l{i}") for i in range(4000))
    wait_until(lambda: server.batch(big)["request_counts"]["completed"] > 200)
    neighbour = server.new_key("neighbour")
    server.key, own = neighbour, server.key
    try:
        server.wait(server.create(chat_line(f"s{i}") for i in range(10)))
    finally:
        server.key = own
    counts = server.batch(big)["request_counts"]
    assert counts["completed"] < 2500, "the small one waited for most of the large one"
    server.request("POST", f"/v1/batches/{big}/cancel")
    server.wait(big)


def test_an_engine_is_given_little_more_than_it_works_on(new_home: Path) -> None:
    with Server(new_home, VBATCH_SIM_LATENCY_MS="400", VBATCH_SIM_CONCURRENCY="8") as server:
        batch_id = server.create(chat_line(f"l{i}") for i in range(400))
        wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > 60)
        url = server.query("SELECT url FROM workers_service WHERE state = 'running'")[0][0]

        def is_full() -> bool:
            stats = _stats(url)
            assert stats["waiting"] <= 120
            return stats["running"] == 8 and stats["waiting"] > 0

        wait_until(is_full)
        wait_until(lambda: _stats(url)["waiting"] <= 64)


def _stats(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/sim/stats") as answer:  # noqa: S310
        return dict(json.load(answer))


def _add_sleepy(server: Server) -> None:
    for name in ("one", "two"):
        server.add_model(name, name, "--enable-sleep-mode")


def test_a_model_that_may_sleep_is_woken_and_not_loaded_again(new_home: Path) -> None:
    with Server(new_home, VBATCH_SIM_STARTUP="1") as server:
        _add_sleepy(server)
        for model in ("one", "two", "one", "two"):
            batch = server.wait(server.create([chat_line("a", "hello", model=model)]))
            assert server.lines(batch)[0][0]["response"]["body"]["choices"][0]["message"]["content"] == "echo: hello"
        states = server.query("SELECT state FROM workers_service ORDER BY id")
        assert states == [("sleeping",), ("running",)]
        woken = server.query("SELECT count(*) FROM workers_servedmodel WHERE wake_seconds < load_seconds")
        assert woken == [(2,)]


def test_an_engine_that_wakes_up_wrong_is_replaced_before_it_sees_a_line(new_home: Path) -> None:
    with Server(new_home, VBATCH_SIM_WAKE_GARBLES="1") as server:
        _add_sleepy(server)
        for model in ("one", "two", "one"):
            batch = server.wait(server.create([chat_line("a", "hello", model=model)]))
            assert server.lines(batch)[0][0]["response"]["body"]["choices"][0]["message"]["content"] == "echo: hello"
        states = server.query("SELECT state FROM workers_service ORDER BY id")
        assert states == [("failed",), ("sleeping",), ("running",)]
        assert server.requests_seen().count("hello") == 3
