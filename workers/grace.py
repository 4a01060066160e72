"""How engines are started and ended, wherever that is. Standard library only, for nodes that have nothing else."""

import subprocess
from typing import IO

from vbatch_site import guard

STOP_SECONDS = 8.0  # vLLM frees a GPU in two or three; after this it is killed
ORPHAN_SECONDS = 2.0  # when what started it is dead: nobody reads its answers, and somebody wants the GPU


def start(program: list[str], environment: dict[str, str], log: IO[bytes]) -> "subprocess.Popen[bytes]":
    """Start an engine under a guard, which ends it with this process."""
    return guard.start(STOP_SECONDS, program, orphan_seconds=ORPHAN_SECONDS, env=environment, stdout=log, stderr=log)
