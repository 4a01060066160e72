"""What nvidia-smi says of this host's GPUs; what it does not say stays unknown. Pure: no Django."""

import subprocess
import time
from dataclasses import dataclass

_FIELDS = ["index", "name", "memory.used", "memory.total", "utilization.gpu", "temperature.gpu"]
_QUERY = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
_TIMEOUT_SECONDS = 3  # a driver that hangs must not hang the page
_FRESH_SECONDS = 2.0  # pages of several people share one look

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; None is unknown."""

    index: int
    name: str
    memory_used: int | None = None  # bytes
    memory_total: int | None = None  # bytes
    utilization: int | None = None  # percent
    temperature: int | None = None  # degrees Celsius


_last: tuple[float, list[Gpu] | None] | None = None


def parse(text: str) -> list[Gpu]:
    """Return the GPUs that nvidia-smi lists; a value that is no number, such as [N/A], is unknown."""
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) != len(_FIELDS) or not parts[0].isdigit():
            continue
        used, total, busy, heat = (int(part) if part.isdigit() else None for part in parts[2:])
        found.append(
            Gpu(
                int(parts[0]),
                parts[1],
                None if used is None else used * _MIB,
                None if total is None else total * _MIB,
                busy,
                heat,
            )
        )
    return found


def look() -> list[Gpu] | None:
    """Return this host's GPUs, None where nvidia-smi is not there or does not answer."""
    global _last
    now = time.monotonic()
    if _last is not None and now - _last[0] < _FRESH_SECONDS:
        return _last[1]
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
        found: list[Gpu] | None = parse(done.stdout)
    except (OSError, subprocess.SubprocessError):
        found = None
    _last = (now, found)
    return found
