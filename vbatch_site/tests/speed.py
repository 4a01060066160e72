"""How fast a core is at present, against the one for which limits of computing time are written."""

import time

_WORK_SECONDS = 0.009  # that the work below takes there; neighbours make a core up to three times slower


def slowness() -> float:
    """Return how many times longer than it should this thread's core takes now, at least 1."""
    began = time.thread_time()
    found: dict[str, int] = {}
    for i in range(20_000):
        found[f"key-{i % 997}"] = found.get(f"key-{i % 991}", 0) + len(str(i))
    return max((time.thread_time() - began) / _WORK_SECONDS, 1.0)
