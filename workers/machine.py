"""What this machine is, as far as an engine's arguments depend on it. Pure: no Django."""

from functools import cache
from pathlib import Path

# Instructions that multiply bfloat16; without them a CPU computes it in software, five times slower than float32
# (116 against 25 tokens/s on two cores of an EPYC, SmolLM2-135M).
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_CPU = Path("/proc/cpuinfo")


def gpu_count() -> int:
    """Return the number of NVIDIA GPUs; the driver lists them, so that no CUDA is touched before a fork."""
    return len(list(_NVIDIA.glob("*")))


@cache
def engine_arguments() -> str:
    """Return arguments that every engine on this machine starts with; all others come after them and win."""
    if gpu_count():
        return ""
    try:
        words = set(_CPU.read_text().split())
    except OSError:
        return ""
    return "" if words & _BFLOAT16_FLAGS else "--dtype float32"
