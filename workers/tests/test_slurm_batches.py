"""Batches on services that SLURM runs, which start and stop by themselves."""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from vbatch_site.tests.servers import MODEL, Server, chat_line, wait_until
from workers.tests.slurm import Cluster
from workers.tests.test_services import get

pytestmark = pytest.mark.slow

SMALL = json.dumps({"resources": {"cpu": 1, "memory": "256M", "gpu": None, "time_limit": 30}})
LINES = 1500


@pytest.fixture
def settings(slurm: Cluster) -> Iterator[dict[str, str]]:
    """What a server on the cluster's head node is told; its jobs are ended after the test."""
    yield {
        "VBATCH_LAUNCHER": "slurm",
        "VBATCH_SLURM_CONFIG": SMALL,
        "VBATCH_SLURM_MAX": "2",
        "VBATCH_SLURM_IDLE": "3",
        "VBATCH_SLURM_LINES": "1000",
        **slurm.env,
    }
    slurm.cancel_all()


def _services(server: Server) -> list[tuple[Any, ...]]:
    return server.query(
        "SELECT job_id, state, error, fed_by_id, ends_at FROM workers_service WHERE launcher = 'slurm' ORDER BY id"
    )


def _check(server: Server, batch: dict[str, Any], count: int) -> None:
    output, errors = server.lines(batch)
    assert not errors, errors[:2]
    assert Counter(line["custom_id"] for line in output) == Counter(f"line-{i}" for i in range(count))


def _lines(count: int) -> str:
    return "".join(chat_line(f"line-{i}", f"line-{i}") for i in range(count))


def test_services_start_for_a_batch_grow_with_the_queue_and_stop_when_idle(
    settings: dict[str, str], new_home: Path
) -> None:
    with Server(new_home, VBATCH_SIM_LINES_PER_SECOND="100", **settings) as server:
        batch_id = server.create(_lines(LINES))
        wait_until(lambda: len([s for s in _services(server) if s[3]]) == 2, step=0.2)
        batch = server.wait(batch_id)
        _check(server, batch, LINES)
        assert len(server.requests_seen()) == LINES
        assert len(_services(server)) == 2
        # Nobody's project: nobody sees them over the API.
        assert get(server, "services") == []
        wait_until(lambda: {s[1] for s in _services(server)} == {"completed"}, step=0.2)
        assert {s[2] for s in _services(server)} == {"There was no work for it."}


def test_lines_of_a_cancelled_service_go_elsewhere(settings: dict[str, str], new_home: Path, slurm: Cluster) -> None:
    settings |= {"VBATCH_SIM_LINES_PER_SECOND": "60", "VBATCH_SLURM_LINES": "400"}
    count = 600
    with Server(new_home, **settings) as server:
        batch_id = server.create(_lines(count))
        wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > 60)
        victim = next(s for s in _services(server) if s[3])
        slurm.ask("scancel", victim[0])
        batch = server.wait(batch_id, 180)
        _check(server, batch, count)
        wait_until(lambda: ("cancelled", "It was cancelled.") in [(s[1], s[2]) for s in _services(server)])


def test_no_line_is_started_that_the_time_limit_would_cut_off(
    settings: dict[str, str], new_home: Path, slurm: Cluster
) -> None:
    # Too many to be done before the end, of which a busy machine may hear seconds late.
    settings |= {"VBATCH_SLURM_MAX": "1", "VBATCH_SIM_LATENCY_MS": "1500", "VBATCH_SIM_LINES_PER_SECOND": "40"}
    count = 600
    with Server(new_home, **settings) as server:
        batch_id = server.create(_lines(count))
        wait_until(lambda: server.batch(batch_id)["request_counts"]["completed"] > 60)
        first = next(s for s in _services(server) if s[3])
        end = datetime.now() + timedelta(seconds=16)  # noqa: DTZ005 (SLURM reads local time)
        slurm.ask("scontrol", "update", f"JobId={first[0]}", f"EndTime={end:%Y-%m-%dT%H:%M:%S}")
        wait_until(lambda: first[0] in [s[0] for s in _services(server) if not s[3]], step=0.1)
        let_go_at = datetime.now(UTC)
        ends_at = next(s[4] for s in _services(server) if s[0] == first[0])
        assert let_go_at < ends_at
        # Its successor would do the rest, but comes only when SLURM has noticed the end, half a minute later.
        server.request("POST", f"/v1/batches/{batch_id}/cancel")
        output, errors = server.lines(server.wait(batch_id))
        # None was aborted to be run again, and there were some that were left.
        assert Counter(server.requests_seen()) == Counter(line["custom_id"] for line in output)
        assert {line["error"]["code"] for line in errors} == {"batch_cancelled"}
        assert len(output) + len(errors) == count


def test_a_line_that_kills_engines_fails_alone(settings: dict[str, str], new_home: Path) -> None:
    with Server(new_home, **settings) as server:
        lines = [chat_line(f"line-{i}", "[[sim:crash]]" if i == 2 else "hello") for i in range(4)]
        batch = server.wait(server.create(lines), 300)
        output, errors = server.lines(batch)
        assert sorted(line["custom_id"] for line in output) == ["line-0", "line-1", "line-3"]
        assert [line["custom_id"] for line in errors] == ["line-2"]


def test_a_model_that_can_not_be_started_ends_the_batch(settings: dict[str, str], new_home: Path) -> None:
    with Server(new_home, VBATCH_SIM_STARTUP_FAIL="1", **settings) as server:
        batch = server.wait(server.create(_lines(3)), 240)
        _, errors = server.lines(batch)
        assert batch["status"] == "failed" or len(errors) == 3
        assert "No service could be started" in json.dumps([batch, errors])


def test_a_catalogue_model_of_a_group_is_fed_by_all_its_replicas(
    settings: dict[str, str], new_home: Path, slurm: Cluster
) -> None:
    settings |= {"VBATCH_SIM_LINES_PER_SECOND": "100"}
    with Server(new_home, **settings) as server:
        config = {"environment": {"VLLM_MODEL": MODEL}, "resources": {"gpu": None, "cpu": 1, "memory": "256M"}}
        wanted = {"recipe_name": "inference/vllm-replicas", "config": {**config, "replicas": 2}}
        group = server.request("POST", "/api/v1/services", wanted)[2]
        wait_until(lambda: get(server, f"service-groups/{group['id']}/status")["running_replicas"] == 2, step=0.2)
        batch_id = server.create(_lines(LINES))
        wait_until(lambda: len([s for s in _services(server) if s[3]]) == 2, step=0.1)
        _check(server, server.wait(batch_id), LINES)
        assert len(_services(server)) == 2
        assert get(server, f"service-groups/{group['id']}")["status"] == "running"
