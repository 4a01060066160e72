"""A tree whose worker feeds a service over a network that can be cut: a simulated engine behind a relay."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vbatch_site.tests.chaos.relay import Relay
from vbatch_site.tests.chaos.tree import LINES_PER_SECOND, Tree
from vbatch_site.tests.servers import MODEL, ROOT, free_port


@contextmanager
def attached(home: Path, url: str) -> Iterator[tuple[Tree, Relay]]:
    """Run a tree of one worker on a database that is given, an engine that is no child of it, and the relay to that."""
    tree = Tree(home, url, VBATCH_LAUNCHER="slurm", VBATCH_GPU_WORKERS="1", PATH="/nonexistent")
    home.mkdir(parents=True)
    port = free_port()
    command = [sys.executable, "-m", "workers.sim", "--port", str(port), "--served-model-name", MODEL]
    knobs = {"VBATCH_SIM_LINES_PER_SECOND": str(LINES_PER_SECOND), "VBATCH_SIM_LATENCY_MS": "100"}
    knobs["VBATCH_SIM_REQUEST_LOG"] = str(home / "requests.log")
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, **knobs}) as engine, Relay(port) as relay:
        tree.relay = relay
        try:
            with tree:
                # SLURM is away, so that nobody looks whether this job of it is there.
                tree.execute(
                    "INSERT INTO workers_service (model_id, state, url, created_at, ready_at, error, launcher, job_id,"
                    " name, recipe, config, group_id, host, used_at, gpu_count, gpus, misses)"
                    " SELECT id, 'running', %s, now(), now(), '', 'slurm', '1', 'chaos', '', '{}', '', 'elsewhere',"
                    " now(), 0, '[]', 0 FROM workers_servedmodel WHERE name = %s",
                    f"http://127.0.0.1:{relay.port}",
                    MODEL,
                )
                yield tree, relay
        finally:
            engine.kill()
