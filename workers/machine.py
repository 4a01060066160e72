"""What this machine is, as far as an engine's arguments depend on it. Pure: no Django."""

import os
import shutil
from functools import cache
from pathlib import Path

# Instructions that multiply bfloat16; without them a CPU computes it in software, five times slower than float32
# (116 against 25 tokens/s on two cores of an EPYC, SmolLM2-135M).
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}

# Of the memory that is free when an engine starts on the processor, what it takes for its weights and its cache. Left
# alone vLLM takes 92 % of all there is, and refuses to start where less is free. Its argument speaks of a GPU here too.
_MEMORY_SHARE = 0.5

# vLLM keeps one core from the model, for its scheduler. On so few cores that is too much: with both at work two cores
# answered 3.59 requests/s instead of 2.27 (benchmarks/README.md).
_FEW_CORES = 2
_RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"

_NVIDIA = Path("/proc/driver/nvidia/gpus")
_CPU = Path("/proc/cpuinfo")
_MEMORY = Path("/proc/meminfo")


def gpu_count() -> int:
    """Return the number of NVIDIA GPUs; the driver lists them, so that no CUDA is touched before a fork."""
    return len(list(_NVIDIA.glob("*")))


def engine_arguments() -> str:
    """Return arguments that every engine on this machine starts with; all others come after them and win."""
    if gpu_count():
        return ""
    # In tenths, so that an engine which is loaded again mostly has the same arguments.
    share = max(1, int(free_memory() * _MEMORY_SHARE * 10)) / 10
    arguments = ["--gpu-memory-utilization", f"{share}"]
    if _lacks_bfloat16():
        arguments += ["--dtype", "float32"]
    # What torch would compile for a processor it compiles with this, and without it no model loads.
    if not has_compiler():
        arguments.append("--enforce-eager")
    return " ".join(arguments)


@cache
def _lacks_bfloat16() -> bool:
    try:
        return not set(_CPU.read_text().split()) & _BFLOAT16_FLAGS
    except OSError:
        return False


def has_compiler() -> bool:
    """Return whether what engines here compile can be compiled: for GPUs that is C, for processors C++."""
    names = (os.environ.get("CC"), "gcc", "clang") if gpu_count() else (os.environ.get("CXX", "g++"),)
    return any(name and shutil.which(name) for name in names)


def engine_environment() -> dict[str, str]:
    """Return variables that every engine on this machine starts with, without those that a person has set."""
    if gpu_count() or len(os.sched_getaffinity(0)) > _FEW_CORES or _RESERVED in os.environ:
        return {}
    return {_RESERVED: "0"}


def free_memory() -> float:
    """Return the part of the host's memory that programs could still have; 1 where that is not known."""
    try:
        sizes = {name: int(rest.split()[0]) for name, _, rest in (x.partition(":") for x in _MEMORY.open())}
        return sizes["MemAvailable"] / sizes["MemTotal"]
    except (OSError, LookupError, ValueError):
        return 1.0
