"""The knobs of the simulated engine, and how it starts and ends."""

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import workers.sim
from workers.tests.simulated import MODEL, ROOT, Sim, run_to_its_end, serving, until

# Knobs


def test_the_failure_rate_fails_in_the_same_places_and_a_retry_can_succeed() -> None:
    def statuses(sim: Sim) -> list[int]:
        return [sim.chat(f"line {number}").status for number in range(60)]

    with serving(VBATCH_SIM_FAILURE_RATE="0.5") as sim:
        first, second = statuses(sim), statuses(sim)
        assert sim.stats()["failed"] == (first + second).count(500)
    assert 15 <= first.count(500) <= 45
    again = [second[number] for number, status in enumerate(first) if status == 500]
    assert {200, 500} == set(again)
    with serving(VBATCH_SIM_FAILURE_RATE="0.5") as sim:
        assert statuses(sim) == first


def test_latency_and_decode_speed_add_up() -> None:
    with serving(VBATCH_SIM_LATENCY_MS="100", VBATCH_SIM_TOKENS_PER_SECOND="50") as sim:
        start = time.monotonic()
        sim.chat("hello", max_tokens=16, ignore_eos=True)
        # 100 ms to the first token, then 15 of 20 ms each.
        assert 0.4 <= time.monotonic() - start < 20


def test_a_stream_comes_at_the_decode_speed() -> None:
    with serving(VBATCH_SIM_TOKENS_PER_SECOND="25") as sim:
        start = time.monotonic()
        connection = sim.open_chat("hello", stream=True, max_tokens=20, ignore_eos=True)
        with connection, connection.makefile("rb") as stream:
            arrivals = []
            for line in stream:
                if b"data: " in line:
                    arrivals.append(time.monotonic() - start)
                if b"[DONE]" in line:
                    break
    assert arrivals[-1] >= 0.76
    # Whenever the first comes, the last is far behind it.
    assert arrivals[-1] - arrivals[0] > 0.3


def test_lines_per_second_bound_the_whole_server() -> None:
    with serving(VBATCH_SIM_LINES_PER_SECOND="50") as sim:
        start = time.monotonic()
        connections = [sim.open_chat(f"line {number}") for number in range(26)]
        for connection in connections:
            assert connection.recv(15).endswith(b"200 OK")
        # The first needs no wait; 25 more at 20 ms.
        assert 0.5 <= time.monotonic() - start < 20
        for connection in connections:
            connection.close()


def test_concurrency_bounds_what_is_worked_on_and_the_rest_waits() -> None:
    with serving(VBATCH_SIM_CONCURRENCY="2", VBATCH_SIM_LATENCY_MS="50") as sim:
        blockers = [sim.open_chat("[[sim:hang]]") for _ in range(2)]
        until(lambda: sim.stats()["running"] == 2)
        connections = [sim.open_chat(f"line {number}") for number in range(8)]
        until(lambda: sim.stats()["waiting"] == 8)
        for blocker in blockers:
            blocker.close()
        for connection in connections:
            assert connection.recv(15).endswith(b"200 OK")
            connection.close()
        until(lambda: sim.stats()["running"] == 0)
        stats = sim.stats()
    assert (stats["completed"], stats["max_running"], stats["waiting"]) == (8, 2, 0)


def test_one_who_leaves_the_line_is_dropped_and_takes_no_place() -> None:
    with serving(VBATCH_SIM_CONCURRENCY="1") as sim:
        first = sim.open_chat("[[sim:hang]]")
        until(lambda: sim.stats()["running"] == 1)
        second = sim.open_chat("impatient")
        until(lambda: sim.stats()["waiting"] == 1)
        second.close()
        until(lambda: sim.stats()["aborted"] == 1)
        assert sim.stats()["waiting"] == 0
        first.close()
        assert sim.chat("hello").status == 200
        assert sim.stats()["aborted"] == 2


@pytest.mark.parametrize(("policy", "order"), [("priority", ["live", "batch"]), ("fcfs", ["batch", "live"])])
def test_a_lower_priority_number_goes_first_under_the_priority_policy_only(policy: str, order: list[str]) -> None:
    first, second = order
    # The second never ends, so that the first is answered only if it goes before it.
    texts = {first: "hello", second: "[[sim:hang]]"}
    with serving("--scheduling-policy", policy, VBATCH_SIM_CONCURRENCY="1") as sim:
        blocker = sim.open_chat("[[sim:hang]]")
        until(lambda: sim.stats()["running"] == 1)
        with sim.open_chat(texts["batch"], priority=10) as batch:
            until(lambda: sim.stats()["waiting"] == 1)
            with sim.open_chat(texts["live"], priority=0) as live:
                until(lambda: sim.stats()["waiting"] == 2)
                blocker.close()
                assert {"batch": batch, "live": live}[first].recv(15).endswith(b"200 OK")
                until(lambda: sim.stats()["waiting"] == 0)
                assert sim.stats()["running"] == 1


def test_a_sleeping_server_answers_once_it_is_woken(sim: Sim) -> None:
    assert sim.post("/sleep?level=1", b"").json == {"status": "sleeping", "level": 1}
    assert sim.get("/is_sleeping").json == {"is_sleeping": True}
    with sim.open_chat("hello") as connection:
        until(lambda: sim.stats()["waiting"] == 1)
        assert sim.post("/wake_up", b"").json["status"] == "awake"
        assert connection.recv(15).endswith(b"200 OK")
    assert sim.get("/is_sleeping").json == {"is_sleeping": False}


def test_the_request_log_has_the_user_text_of_each_request_taken(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with serving(VBATCH_SIM_REQUEST_LOG=str(log)) as sim:
        sim.chat("two\nlines")
        sim.chat("refused", max_tokens=0)
        sim.chat("a failure is taken too [[sim:500]]")
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            sim.chat("and so is a [[sim:crash]]")
    with serving(VBATCH_SIM_REQUEST_LOG=str(log)) as sim:
        sim.post("/v1/embeddings", {"model": MODEL, "input": ["one", "two"]})
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        "two\nlines",
        "a failure is taken too [[sim:500]]",
        "and so is a [[sim:crash]]",
        "one\ntwo",
    ]


def test_orders_are_markers_of_every_request_for_as_long_as_their_file_exists(tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    with serving(VBATCH_SIM_ORDERS=str(orders)) as sim:
        assert sim.chat("hello").status == 200
        orders.write_text("[[sim:500]]")
        assert sim.chat("hello").status == 500
        orders.unlink()
        assert sim.chat("hello").status == 200


def test_every_route_is_503_until_the_server_has_started() -> None:
    with serving(wait=False, VBATCH_SIM_STARTUP="2.5") as sim:
        assert sim.get("/health").status == 503
        assert sim.chat("hello").status == 503
        until(lambda: sim.get("/health").status == 200)
        assert sim.chat("hello").status == 200


def test_a_failed_start_prints_an_error_like_vllms_and_exits_with_1() -> None:
    ended = run_to_its_end(VBATCH_SIM_STARTUP_FAIL="1")
    assert ended.returncode == 1
    assert "Engine core initialization failed" in ended.stderr


@pytest.mark.parametrize("value", ["fast", "-1", "nan"])
def test_a_knob_that_is_no_number_in_range_stops_the_start(value: str) -> None:
    ended = run_to_its_end(VBATCH_SIM_LATENCY_MS=value)
    assert ended.returncode == 2
    assert "VBATCH_SIM_LATENCY_MS" in ended.stderr


def test_sigterm_stops_it_whatever_is_in_flight() -> None:
    with serving() as sim, sim.open_chat("[[sim:hang]]") as connection:
        until(lambda: sim.stats()["running"] == 1)
        sim.process.send_signal(signal.SIGTERM)
        assert sim.process.wait(20) == 0
        # Closed without an answer: nobody may take the end of the engine for the result of a request.
        try:
            assert connection.recv(100) == b""
        except ConnectionError:
            pass


# The program itself


def test_it_does_not_import_django() -> None:
    script = "import sys, workers.sim.__main__; sys.exit('django' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_every_variable_and_marker_is_documented() -> None:
    package = ROOT / "workers" / "sim"
    documented = workers.sim.__doc__ or ""
    variables = set(re.findall(r"VBATCH_SIM_[A-Z_]+[A-Z]", (package / "knobs.py").read_text()))
    assert len(variables) == 11
    for name in variables:
        assert name in documented
    for marker in ("crash", "hang", "slow", "400", "500", "503once", "garbage", "truncate", "200error"):
        assert f"[[sim:{marker}" in documented
