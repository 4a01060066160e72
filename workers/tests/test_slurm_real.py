"""Real vLLM as a SLURM job: started through sbatch, prompted, asked live, used by a batch, cancelled."""

import json
import os
from pathlib import Path

from vbatch_site.tests.servers import MODEL, Server, chat_line, is_alive, wait_until
from workers.tests.slurm import Cluster
from workers.tests.test_real_engine import ENGINE, LOAD, models
from workers.tests.test_services import call, engine_of, get

__all__ = ["models"]  # the fixture

LINES = 12


def test_smollm2_is_served_by_a_job_and_used_by_a_batch(slurm: Cluster, models: Path, new_home: Path) -> None:
    new_home.mkdir()
    os.symlink(models / "models", new_home / "models")
    with Server(new_home, VBATCH_LAUNCHER="slurm", VBATCH_SLURM_MAX="1", **ENGINE, **slurm.env) as server:
        environment = {"VLLM_MODEL": MODEL, "VLLM_MAX_MODEL_LEN": 512}
        resources = {"cpu": 2, "memory": "6G", "time_limit": 20, "gpu": None}
        config = {"environment": environment, "resources": resources}
        status, made = call(server, "POST", "services", {"recipe_name": "inference/vllm", "config": config})
        assert status == 200, made
        service_id = made["id"]

        def is_running() -> bool:
            found = get(server, f"services/{service_id}")
            assert found["status"] in ("pending", "building", "starting", "running"), (
                found,
                get(server, f"services/{service_id}/logs")["logs"][-4000:],
            )
            return bool(found["status"] == "running")

        wait_until(is_running, LOAD, 0.5)
        service = get(server, f"services/{service_id}")
        job = json.loads(slurm.ask("squeue", "--json"))["jobs"]
        assert [str(found["job_id"]) for found in job if found["job_state"] == "RUNNING"] == [service_id]

        body = {"prompt": "Name three animals that live in the sea.", "max_tokens": 24, "temperature": 0}
        status, answer = call(server, "POST", f"vllm/{service_id}/prompt", body)
        assert (status, answer["success"]) == (200, True), answer
        assert len(answer["text"]) > 10
        assert answer["usage"]["completion_tokens"] <= 24
        assert "max_model_len" in get(server, f"services/{service_id}/logs")["logs"]

        live = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        assert server.request("POST", "/v1/chat/completions", live)[0] == 200

        batch_id = server.create(
            chat_line(f"line-{i}", f"What is {i} plus {i}?", max_tokens=8, temperature=0) for i in range(LINES)
        )
        batch = server.wait(batch_id, LOAD)
        output, errors = server.lines(batch)
        assert (batch["status"], len(output), errors) == ("completed", LINES, [])
        assert all(line["response"]["body"]["choices"][0]["message"]["content"] for line in output)
        # The batch had no engine but this one.
        assert server.query("SELECT job_id FROM workers_service") == [(service_id,)]

        engine = engine_of(server, service)
        assert call(server, "DELETE", f"services/{service_id}")[1]["status"] == "cancelled"
        wait_until(lambda: not is_alive(engine))
