"""Run the simulated server: `python -m workers.sim --port 8000 --served-model-name NAME`."""

from __future__ import annotations

import gc
import os
import sys
from types import FrameType
from typing import Any, cast

import uvicorn

from .app import App
from .knobs import KnobError, Knobs, Options

# As in vLLM: an idle connection is closed after so many seconds, which clients must survive.
KEEP_ALIVE_SECONDS = 5
# Collecting garbage less often: a request leaves no cycles behind.
GC_THRESHOLD = 50_000
STARTUP_ERROR = """\
(EngineCore) ERROR EngineCore failed to start.
(EngineCore) ValueError: To serve at least one request with the model's max seq len (32768), 4.00 GiB KV cache is \
needed, which is larger than the available KV cache memory (1.31 GiB). Try increasing `gpu_memory_utilization` or \
decreasing `max_model_len` when initializing the engine.
(APIServer) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


class Server(uvicorn.Server):
    """uvicorn, but it stops at once."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the process; the kernel closes the connections.

        uvicorn would cancel what is in flight and answer 500 to it, and a caller could take that for the result of
        its request. A closed connection can only mean one thing.
        """
        os._exit(0)


def main() -> int:
    """Read the knobs, serve until a signal comes, return the exit status."""
    try:
        knobs = Knobs.from_environment(os.environ)
    except KnobError as error:
        sys.stderr.write(f"workers.sim: {error}\n")
        return 2
    options = Options.from_arguments(sys.argv[1:], os.environ)
    if knobs.startup_fail:
        sys.stderr.write(STARTUP_ERROR)
        return 1
    app = App(knobs, options)
    config = uvicorn.Config(
        # Our types are narrower than uvicorn's, which cover websockets too.
        cast(Any, app),
        host=options.host,
        port=options.port,
        uds=options.uds,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_level="error",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # Many clients may connect in one burst.
        backlog=4096,
    )
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
