"""Services as jobs of a real SLURM, with the simulated engine."""

import json
import stat
from collections.abc import Iterator
from typing import Any

import pytest

from vbatch_site.tests.servers import MODEL, Server, free_port, is_alive, wait_until
from workers.tests.slurm import Cluster
from workers.tests.test_services import CPU, call, engine_of, get, running, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server on the cluster's head node."""
    with Server(tmp_path_factory.mktemp("slurm"), VBATCH_LAUNCHER="slurm", **slurm.env) as server:
        yield server


def _job(slurm: Cluster, job_id: str) -> dict[str, Any]:
    """Return what SLURM says of a job."""
    # A controller that is busy says nothing.
    jobs = json.loads(wait_until(lambda: slurm.ask("squeue", "--json")))["jobs"]
    return next(job for job in jobs if str(job["job_id"]) == job_id)


def _status(server: Server, service_id: str) -> str:
    return str(get(server, f"services/{service_id}")["status"])


def test_a_service_is_a_job_that_answers_and_is_cancelled(server: Server, slurm: Cluster) -> None:
    environment = {"VLLM_MODEL": MODEL, "VLLM_MAX_MODEL_LEN": 64}
    resources = {"nodes": 1, "cpu": 2, "memory": "512M", "time_limit": 7, "gpu": None}
    made = start(server, {"environment": environment, "resources": resources})
    assert made["id"].isdigit()
    assert made["status"] == "pending"
    service = running(server, made["id"])
    job = _job(slurm, service["id"])
    assert (job["name"], job["job_state"], job["time_limit"]) == (service["name"], "RUNNING", 7)
    assert job["job_resources"]["allocated_cpus"] == 2
    assert service["node"] == job["nodes"]
    assert service["ends_at"] is not None

    status, answer = call(server, "POST", f"vllm/{service['id']}/prompt", {"prompt": "hello", "max_tokens": 5})
    assert (status, answer["service_id"]) == (200, service["id"])
    engine = engine_of(server, service)
    folder = server.home / "services" / service["name"]
    key = (folder / "key").read_text()
    assert stat.S_IMODE((folder / "key").stat().st_mode) == 0o600
    assert key not in " ".join(engine.cmdline())
    assert not {"DATABASE_URL", "VBATCH_SECRET_KEY"} & set(engine.environ())
    assert key not in slurm.ask("scontrol", "show", "job", service["id"], "--all")

    assert call(server, "DELETE", f"services/{service['id']}")[1]["status"] == "cancelled"
    wait_until(lambda: _job(slurm, service["id"])["job_state"] == "CANCELLED")
    wait_until(lambda: not is_alive(engine))


def test_scancel_from_outside_is_seen_within_seconds(server: Server, slurm: Cluster) -> None:
    service = running(server, start(server)["id"])
    slurm.ask("scancel", service["id"])
    wait_until(lambda: _status(server, service["id"]) == "cancelled", 30)
    # Cancelled while it waits for its turn: nothing of it was ever started.
    waiting = start(server, {**CPU, "resources": {"gpu": None, "cpu": 999}})
    wait_until(lambda: "PartitionConfig" in (get(server, f"services/{waiting['id']}")["error"] or ""))
    slurm.ask("scancel", waiting["id"])
    wait_until(lambda: _status(server, waiting["id"]) == "cancelled", 30)


def test_a_service_outlives_the_server_and_what_happened_meanwhile_is_seen(server: Server, slurm: Cluster) -> None:
    first, second = (running(server, start(server)["id"]) for _ in range(2))
    engine = engine_of(server, first)
    server.kill_tree()
    assert is_alive(engine)
    slurm.ask("scancel", second["id"])
    server.start()
    wait_until(lambda: _status(server, second["id"]) == "cancelled")
    assert get(server, f"services/{first['id']}")["endpoint"] == first["endpoint"]
    assert call(server, "POST", f"vllm/{first['id']}/prompt", {"prompt": "hello"})[0] == 200
    engine.kill()
    wait_until(lambda: _status(server, first["id"]) == "failed")


def test_a_group_is_a_job_for_each_replica(server: Server, slurm: Cluster) -> None:
    port = free_port()
    group = start(server, {**CPU, "replicas": 2, "base_port": port}, "inference/vllm-replicas")
    ids = [replica["id"] for replica in group["replicas"]]
    assert group["id"] == f"sg-{ids[0]}"
    assert [job["replicas"] for job in group["node_jobs"]] == [[service_id] for service_id in ids]
    endpoints = [running(server, service_id)["endpoint"] for service_id in ids]
    assert [endpoint.rpartition(":")[2] for endpoint in endpoints] == [str(port), str(port + 1)]
    assert call(server, "POST", f"service-groups/{group['id']}/status", {"status": "cancelled"})[0] == 200
    wait_until(lambda: all(_job(slurm, service_id)["job_state"] == "CANCELLED" for service_id in ids))


def test_what_slurm_refuses_is_refused_in_its_words_and_leaves_nothing(server: Server) -> None:
    before = len(get(server, "services"))
    wrong = {**CPU, "partition": "nowhere"}
    status, answer = call(server, "POST", "services", {"recipe_name": "inference/vllm", "config": wrong})
    assert (status, answer["error"]["code"]) == (400, "refused_by_launcher")
    assert "Invalid partition name" in answer["error"]["message"]
    assert len(get(server, "services")) == before


def test_a_node_that_dies_is_seen_and_a_controller_that_is_away_is_waited_for(server: Server, slurm: Cluster) -> None:
    service = running(server, start(server)["id"])
    slurm.kill_node()
    try:
        wait_until(lambda: _status(server, service["id"]) != "running")
        wait_until(lambda: _status(server, service["id"]) == "failed", 180)
        assert "failed" in get(server, f"services/{service['id']}")["error"]
    finally:
        slurm.start_node()
    other = running(server, start(server)["id"])
    with slurm.controller_away():
        status, answer = call(server, "DELETE", f"services/{other['id']}")
        assert (status, answer["error"]["code"]) == (503, "launcher_unavailable")
        # SLURM may put a job back in line while its node comes up again; nobody has ended it.
        assert _status(server, other["id"]) in ("pending", "starting", "running")
    assert call(server, "DELETE", f"services/{other['id']}")[0] == 200
