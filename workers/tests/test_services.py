"""Services on one host, over HTTP and as processes."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from vbatch_site.tests.servers import MODEL, Server, chat_line, free_port, is_alive, wait_until, words_of

pytestmark = pytest.mark.slow

CPU = {"environment": {"VLLM_MODEL": MODEL}, "resources": {"gpu": None}}
NOT_ENDED = ("pending", "building", "starting", "running")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose services are ended with it."""
    with Server(tmp_path_factory.mktemp("services")) as server:
        yield server
        for service in get(server, "services"):
            call(server, "DELETE", f"services/{service['id']}")
        wait_until(lambda: not server.service_processes())


def call(server: Server, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
    """Return status and body."""
    status, _, answer = server.request(method, f"/api/v1/{path}", body, **options)
    return status, answer


def get(server: Server, path: str) -> Any:
    """Return what a GET answers."""
    status, answer = call(server, "GET", path)
    assert status == 200, answer
    return answer


def start(server: Server, config: Any = CPU, recipe: str = "inference/vllm") -> dict[str, Any]:
    """Start a service or a group."""
    status, answer = call(server, "POST", "services", {"recipe_name": recipe, "config": config})
    assert status == 200, answer
    return dict(answer)


def running(server: Server, service_id: str) -> dict[str, Any]:
    """Return a service once it runs."""

    def look() -> Any:
        found = get(server, f"services/{service_id}")
        assert found["status"] in NOT_ENDED, (found, get(server, f"services/{service_id}/logs"))
        return found if found["status"] == "running" else None

    return dict(wait_until(look, 120, 0.2))


def engine_of(server: Server, service: dict[str, Any]) -> psutil.Process:
    """Return the engine's process."""
    job = job_of(server, service)
    return next(p for p in job.children(recursive=True) if "guard.py" not in " ".join(words_of(p)))


def job_of(server: Server, service: dict[str, Any]) -> psutil.Process:
    """Return the process that the engine hangs under."""
    return next(p for p in server.service_processes() if service["name"] in " ".join(words_of(p)))


def refused(server: Server, body: Any) -> tuple[int, str | None, str | None]:
    """Return how a request for a service is refused."""
    status, answer = call(server, "POST", "services", body)
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    return status, answer["error"]["param"], answer["error"]["code"]


def test_a_recipe_name_alone_starts_a_service_that_answers_and_is_cancelled_by_a_post(server: Server) -> None:
    made = start(server, None)
    assert made["model"] == "Qwen/Qwen2.5-0.5B-Instruct"
    assert made["status"] == "pending"
    assert made["config"]["resources"]["nodes"] == 1
    service_id = made["id"]
    found = running(server, service_id)
    assert found["endpoint"].startswith("http://127.0.0.1:")

    status, answer = call(server, "POST", f"vllm/{service_id}/prompt", {"prompt": "hello", "max_tokens": 5})
    assert (status, answer["success"], answer["service_id"]) == (200, True, service_id)
    assert answer["text"]
    assert 1 <= answer["usage"]["completion_tokens"] <= 5
    assert answer["routed_to"] == f"{service_id}:{found['endpoint'].rpartition(':')[2]}"
    assert get(server, f"vllm/{service_id}/models")["models"] == ["Qwen/Qwen2.5-0.5B-Instruct"]
    assert service_id in [service["id"] for service in get(server, "vllm/services")["vllm_services"]]
    assert b"vllm:num_requests_running" in get(server, f"services/{service_id}/metrics")
    target = next(t for t in get(server, "services/targets") if t["labels"]["service_id"] == service_id)
    assert [f"http://{place}" for place in target["targets"]] == [found["endpoint"]]

    job = engine_of(server, found)
    status, answer = call(server, "POST", f"services/{service_id}/status", {"status": "cancelled"})
    assert (status, answer["status"], answer["service_id"]) == (200, "cancelled", service_id)
    assert get(server, f"services/{service_id}/status")["status"] == "cancelled"
    assert not [t for t in get(server, "services/targets") if t["labels"]["service_id"] == service_id]
    wait_until(lambda: not is_alive(job))
    assert not (server.home / "services" / found["name"] / "key").exists()
    assert call(server, "POST", f"vllm/{service_id}/prompt", {"prompt": "hello"})[0] == 409
    assert call(server, "DELETE", f"services/{service_id}")[1]["status"] == "cancelled"


def test_a_service_outlives_the_server_and_is_found_again(tmp_path: Path) -> None:
    server = Server(tmp_path / "home")
    with server:
        made = [start(server) for _ in range(3)]
        first, second, third = (running(server, service["id"]) for service in made)
        before = server.service_processes()
        assert len(before) == 9  # of each: the job, its engine's guard, the engine
        # The web server and the clusters die, and the supervisor with them, while the services hang below one.
        for process in server.tree():
            if process not in before:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        assert server.process is not None
        server.process.wait(60)
    try:
        server.start()
        for service in (first, second, third):
            assert running(server, service["id"])["endpoint"] == service["endpoint"]
        assert call(server, "POST", f"vllm/{first['id']}/prompt", {"prompt": "hello"})[0] == 200

        job, engine = job_of(server, second), engine_of(server, second)
        engine_of(server, first).kill()
        job.kill()
        wait_until(lambda: get(server, f"services/{first['id']}")["status"] == "failed")
        assert "ended with status" in get(server, f"services/{first['id']}/status")["error"]
        wait_until(lambda: get(server, f"services/{second['id']}")["status"] == "failed")
        assert get(server, f"services/{second['id']}")["error"] == "Its process was killed."
        wait_until(lambda: not is_alive(engine))

        # An end in good order leaves it running too.
        engine = engine_of(server, third)
        server.stop()
        assert is_alive(engine)
    finally:
        server.stop()
        server.kill_services()


def test_a_service_takes_its_turn_on_a_hosts_gpu_and_gets_the_batches_of_its_model(tmp_path: Path) -> None:
    with Server(tmp_path / "home", CUDA_VISIBLE_DEVICES="0") as server:

        def engines() -> list[tuple[Any, ...]]:
            return server.query("SELECT state FROM workers_service WHERE launcher = '' ORDER BY id")

        server.wait(server.create(chat_line("warm")))
        service = running(server, start(server, None)["id"])
        assert engines() == [("completed",)]
        assert engine_of(server, service).environ()["CUDA_VISIBLE_DEVICES"] == "0"
        other = server.create(chat_line("other"))
        own = server.wait(server.create(chat_line("own", model=service["model"])))
        assert own["request_counts"]["completed"] == 1
        second = start(server, None)["id"]
        why = "It waits for GPUs of this host that other services use."
        wait_until(lambda: get(server, f"services/{second}/status") == {"status": "pending", "error": why})
        assert server.wait(other, statuses=["in_progress", "completed"])["status"] == "in_progress"
        assert len(engines()) == 1

        assert call(server, "DELETE", f"services/{second}")[0] == 200
        assert call(server, "DELETE", f"services/{service['id']}")[0] == 200
        server.wait(other)
        assert len(engines()) == 2


def test_overrides_reach_the_engine_and_its_key_reaches_nobody_else(server: Server) -> None:
    port = free_port()
    environment = {"VLLM_MODEL": MODEL, "VLLM_HOST": "127.0.0.1", "VLLM_MAX_MODEL_LEN": "64", "VLLM_PORT": port}
    environment |= {"VLLM_TENSOR_PARALLEL_SIZE": 2, "VLLM_GPU_MEMORY_UTILIZATION": 0.5, "CUDA_VISIBLE_DEVICES": "0"}
    resources = {"nodes": 1, "cpu": 1, "memory": "1G", "time_limit": 5, "gpu": 1}
    service = running(server, start(server, {"environment": environment, "resources": resources})["id"])
    arguments = engine_of(server, service).cmdline()
    for name, value in (("--max-model-len", "64"), ("--tensor-parallel-size", "2"), ("--host", "127.0.0.1")):
        assert arguments[arguments.index(name) + 1] == value
    assert service["endpoint"] == f"http://127.0.0.1:{port}"
    # The port is taken now, so the next one gets another.
    other = running(server, start(server, {"environment": environment, "resources": resources})["id"])
    assert other["endpoint"] != service["endpoint"]

    folder = server.home / "services" / service["name"]
    key = (folder / "key").read_text()
    assert len(key) >= 32
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(folder / "key").st_mode) == 0o600
    for process in server.service_processes():
        assert key not in " ".join(words_of(process))
    assert key not in json.dumps(get(server, f"services/{service['id']}"))
    refusal = call(server, "POST", f"vllm/{service['id']}/prompt", {"prompt": "a", "max_tokens": 100})
    assert (refusal[0], refusal[1]["error"]["code"]) == (400, "refused_by_engine")


def test_a_group_has_replicas_that_share_prompts_and_end_together(server: Server) -> None:
    config = {**CPU, "replicas": 2}
    group = start(server, config, "inference/vllm-replicas")
    assert group["id"] == f"sg-{group['replicas'][0]['id']}"
    assert (group["type"], group["num_replicas"], group["total_replicas"]) == ("replica_group", 2, 2)
    ids = [replica["id"] for replica in group["replicas"]]
    for service_id in ids:
        assert running(server, service_id)["group_id"] == group["id"]
    asked = [call(server, "POST", f"vllm/{group['id']}/prompt", {"prompt": "a", "max_tokens": 1}) for _ in range(20)]
    assert {answer["service_id"] for _, answer in asked} == set(ids)
    assert get(server, f"service-groups/{group['id']}")["status"] == "running"
    logs = get(server, f"services/{group['id']}/logs")["logs"]
    assert all(f"==> {service_id} <==" in logs for service_id in ids)

    # One that dies is gone round.
    dead = engine_of(server, get(server, f"services/{ids[0]}"))
    dead.kill()
    wait_until(lambda: not is_alive(dead))
    for _ in range(5):
        status, answer = call(server, "POST", f"vllm/{group['id']}/prompt", {"prompt": "a", "max_tokens": 1})
        assert (status, answer["service_id"]) == (200, ids[1])
    wait_until(lambda: get(server, f"services/{ids[0]}")["status"] == "failed")
    found = get(server, f"service-groups/{group['id']}/status")
    assert (found["status"], found["running_replicas"], found["total_replicas"]) == ("running", 1, 2)

    status, answer = call(server, "DELETE", f"service-groups/{group['id']}")
    assert (status, answer["status"], answer["replicas_stopped"]) == (200, "failed", 1)
    assert group["id"] in [found["id"] for found in get(server, "service-groups")]


def test_a_service_that_can_not_start_fails_with_the_engines_words_in_its_log(broken_server: Server) -> None:
    server = broken_server
    service_id = start(server)["id"]
    wait_until(lambda: get(server, f"services/{service_id}")["status"] == "failed")
    assert "KV cache is needed" in get(server, f"services/{service_id}/logs")["logs"]
    assert get(server, f"services/{service_id}/status")["error"] == "The engine ended with status 1."
    assert call(server, "GET", f"services/{service_id}/metrics")[0] == 409
    # It left word of its end while it still ended.
    wait_until(lambda: not server.service_processes())


def test_a_time_limit_ends_a_service_as_completed(server: Server) -> None:
    service = running(server, start(server)["id"])
    assert service["ends_at"] is not None
    server.execute("UPDATE workers_service SET ends_at = now() WHERE job_id = %s", service["id"])
    wait_until(lambda: get(server, f"services/{service['id']}")["status"] == "completed")
    assert get(server, f"services/{service['id']}")["error"] == "Its time limit was reached."


def test_refusals_name_what_is_wrong(server: Server) -> None:
    assert refused(server, {}) == (400, "recipe_name", "missing_required_parameter")
    assert refused(server, {"recipe_name": 5}) == (400, "recipe_name", "invalid_type")
    assert refused(server, {"recipe_name": "vector-db/qdrant"}) == (400, "recipe_name", "unknown_recipe")
    wrong = {"recipe_name": "inference/vllm", "config": {"environment": {"VLLM_PORT": "first"}}}
    assert refused(server, wrong) == (400, "config.environment.VLLM_PORT", "invalid_type")
    unknown = {"recipe_name": "inference/vllm", "config": {"resources": {"tpu": 1}}}
    assert refused(server, unknown) == (400, "config.resources.tpu", "unknown_parameter")
    assert refused(server, {"recipe_name": "inference/vllm-multi-node"}) == (
        400,
        "config.resources.nodes",
        "not_available",
    )
    assert call(server, "GET", "services/4711")[0] == 404
    assert call(server, "GET", "service-groups/4711")[0] == 404
    assert call(server, "GET", "recipes/inference/tgi")[0] == 404


def test_recipes_are_shown_with_their_parameters(server: Server) -> None:
    listed = get(server, "recipes")
    assert [recipe["path"] for recipe in listed] == [
        "inference/vllm",
        "inference/vllm-multi-node",
        "inference/vllm-replicas",
    ]
    one = get(server, "recipes/inference/vllm")
    assert one == listed[0] == get(server, "recipes?name=vllm") == get(server, "recipes?path=inference/vllm")
    assert one["resources"]["time_limit"] == 60
    assert one["parameters"]["VLLM_MODEL"]["default"] == one["environment"]["VLLM_MODEL"]


def test_services_want_a_key_with_the_right_to_run_them(server: Server) -> None:
    assert call(server, "GET", "services", key=None)[0] == 401
    batches = server.new_key(scopes=("batches",))
    assert call(server, "GET", "services", key=batches)[0] == 403
    other = server.new_key("other", scopes=("services",))
    assert call(server, "GET", "services", key=other) == (200, [])
    mine = start(server)
    assert call(server, "DELETE", f"services/{mine['id']}", key=other)[0] == 404
