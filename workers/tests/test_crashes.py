"""What is promised when processes die."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from vbatch_site.tests.servers import Server, chat_line, wait_until

LINES = 6000
IN_FLIGHT = 512


def _input(count: int = LINES) -> str:
    return "".join(chat_line(f"line-{i}", f"line-{i}") for i in range(count))


def _check_exactly_once(server: Server, batch: dict[str, Any], count: int = LINES) -> None:
    output, errors = server.lines(batch)
    assert not errors
    assert Counter(line["custom_id"] for line in output) == Counter(f"line-{i}" for i in range(count))
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}


def test_a_killed_gpu_worker_loses_nothing_and_repeats_only_what_was_in_flight(new_home: Path) -> None:
    with Server(
        new_home, VBATCH_SIM_LINES_PER_SECOND="600", VBATCH_SIM_LATENCY_MS="100", VBATCH_SIM_CONCURRENCY="256"
    ) as server:
        batch_id = server.create(_input())
        wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > LINES // 3, 60)
        server.gpu_worker().kill()
        killed = time.monotonic()
        done = server.batch(batch_id)["request_counts"]["completed"]
        wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > done + 600, 60)
        assert time.monotonic() - killed < 60
        batch = server.wait(batch_id, 120)
        _check_exactly_once(server, batch)
        # Sent but not committed when the worker died: those in flight, and one commit's worth of answers.
        assert len(server.requests_seen()) - LINES <= IN_FLIGHT + 256


def test_a_killed_tree_goes_on_after_a_new_start(new_home: Path) -> None:
    server = Server(
        new_home, VBATCH_SIM_LINES_PER_SECOND="600", VBATCH_SIM_LATENCY_MS="100", VBATCH_SIM_CONCURRENCY="256"
    )
    with server:
        batch_id = server.create(_input())
        wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > LINES // 3, 60)
        server.kill_tree()
        server.start()
        batch = server.wait(batch_id, 120)
        _check_exactly_once(server, batch)
        assert len(server.requests_seen()) - LINES <= IN_FLIGHT + 256


def test_a_stop_leaves_no_process_behind(new_home: Path) -> None:
    with Server(new_home, VBATCH_SIM_LINES_PER_SECOND="200") as server:
        batch_id = server.create(_input(2000))
        wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > 100)
        processes = server.tree()
        assert len(processes) > 8
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 15
        assert not [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        # What was finished is committed and what was not is free for the next start.
        assert server.query("SELECT count(*) FROM batches_shard WHERE state = 'leased'") == [(0,)]
        server.start()
        _check_exactly_once(server, server.wait(batch_id), 2000)


def test_a_killed_engine_is_started_again_and_its_lines_run_again(new_home: Path) -> None:
    with Server(
        new_home, VBATCH_SIM_LINES_PER_SECOND="600", VBATCH_SIM_LATENCY_MS="100", VBATCH_SIM_CONCURRENCY="256"
    ) as server:
        batch_id = server.create(_input(3000))
        wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > 1000)
        server.engine().kill()
        _check_exactly_once(server, server.wait(batch_id, 90), 3000)


def test_one_line_that_kills_the_engine_gets_an_error_and_the_rest_goes_on(new_home: Path) -> None:
    with Server(new_home) as server:
        content = "".join(chat_line(f"line-{i}", "[[sim:crash]]" if i == 400 else "fine") for i in range(1000))
        batch = server.wait(server.create(content), 120)
        output, errors = server.lines(batch)
        assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("line-400", "engine_crashed")]
        assert Counter(line["custom_id"] for line in output) == Counter(f"line-{i}" for i in range(1000) if i != 400)
        crashes = server.query("SELECT count(*) FROM workers_service WHERE state = 'failed'")[0][0]
        assert crashes <= 11  # log2(512 in flight) + 2


def test_a_killed_embedded_postgres_is_started_again_and_the_batch_goes_on(new_home: Path) -> None:
    with Server(new_home, VBATCH_SIM_LINES_PER_SECOND="300", DATABASE_URL="") as server:
        batch_id = server.create(_input(2000))
        wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > 300, 60)
        postmaster = int((new_home / "postgres" / "postmaster.pid").read_text().splitlines()[0])
        psutil.Process(postmaster).kill()

        def ended() -> dict[str, Any] | None:
            status, _, batch = server.request("GET", f"/v1/batches/{batch_id}")
            assert status in (200, 503), batch
            return batch if status == 200 and batch["status"] == "completed" else None

        _check_exactly_once(server, wait_until(ended, 90, step=0.5), 2000)
