"""How many lines an engine is given at once, by what its gauges say. Pure: no Django.

An engine that has nothing waiting may be idle a moment later; one with much waiting holds lines that another worker, or
a request that came later and matters more, could not get past. So a little is kept waiting: what the engine ends while
an answer is taken and the next line sent, and no more.
"""

import re
from dataclasses import dataclass

# Lines at once before the first look at the gauges: what vLLM works on at once on a small machine.
FIRST_LIMIT = 128
LEAST_LIMIT = 8
MOST_LIMIT = 2048  # above what the largest engines work on at once (1,024)
LOOK_SECONDS = 1.0  # between two looks at the gauges while the limit moves
MOST_LOOK_SECONDS = 8.0  # and when it has settled: making the page costs vLLM some milliseconds
LEAST_SPARE = 8  # lines kept waiting in a slow engine
SPARE_SECONDS = 0.25  # of the engine's work kept waiting in a fast one
GROWTH = 1.25  # of the limit from look to look, while the engine holds all that it gets
# A preemption throws computed keys and values away, so the engine holds more than fits.
BACK_OFF = 0.9
# Of the KV cache in use; above it more lines would only be preempted.
FULL_CACHE = 0.95
# How much of the latest look goes into the rate.
_SMOOTHING = 0.3

# Lines in the runner's hands beyond those in the engine: enough for the time that a claim takes, and a claim is cheap.
# What is in one worker's hands at the end of a batch another can't help with.
LEAST_AHEAD = 16
MOST_AHEAD = 512
AHEAD_SECONDS = 1.0

_GAUGE = re.compile(r"^vllm:(\w+)(?:\{[^}]*\})? ([-+.\deE]+|NaN)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What an engine says of itself (vLLM's /metrics, summed over its data-parallel ranks)."""

    running: int = 0
    waiting: int = 0
    cache_usage: float = 0.0  # part of the KV cache in use; 1 is all
    preemptions: int = 0  # since the engine's start

    @classmethod
    def parse(cls, text: str) -> "Gauges":
        """Return the gauges of a page of metrics; raise ValueError when it holds none."""
        sums: dict[str, float] = {}
        ranks: dict[str, int] = {}
        for name, value in _GAUGE.findall(text):
            sums[name] = sums.get(name, 0.0) + float(value)
            ranks[name] = ranks.get(name, 0) + 1
        if "num_requests_running" not in sums:
            raise ValueError("no gauges of an engine")
        cache = sums.get("kv_cache_usage_perc", 0.0) / ranks.get("kv_cache_usage_perc", 1)
        return cls(
            running=int(sums["num_requests_running"]),
            waiting=int(sums.get("num_requests_waiting", 0)),
            cache_usage=cache,
            preemptions=int(sums.get("num_preemptions_total", 0)),
        )


class Feeding:
    """The limit on lines in flight to one engine, and how far ahead lines are claimed."""

    def __init__(self) -> None:
        self.limit = FIRST_LIMIT
        self.lines_per_second: float | None = None
        self._finished = 0
        self._preemptions: int | None = None

    @property
    def ahead(self) -> int:
        """Return how many lines to hold that are not started."""
        if self.lines_per_second is None:
            return FIRST_LIMIT
        return round(min(MOST_AHEAD, max(LEAST_AHEAD, self.lines_per_second * AHEAD_SECONDS)))

    def finished(self) -> None:
        """Count one line that the engine ended."""
        self._finished += 1

    def look(self, gauges: Gauges | None, in_flight: int, seconds: float) -> None:
        """Learn from the gauges, None when they could not be had, after so many seconds since the last look."""
        rate = self._finished / max(seconds, 1e-3)
        self._finished = 0
        if in_flight or rate:
            last = rate if self.lines_per_second is None else self.lines_per_second
            self.lines_per_second = last + _SMOOTHING * (rate - last)
        if gauges is None:
            return
        preempted = self._preemptions is not None and gauges.preemptions > self._preemptions
        self._preemptions = gauges.preemptions
        spare = max(LEAST_SPARE, round((self.lines_per_second or 0.0) * SPARE_SECONDS))
        if preempted:
            self.limit = round(min(self.limit, gauges.running + gauges.waiting) * BACK_OFF)
        elif gauges.waiting > 2 * spare:
            self.limit = min(self.limit, gauges.running + spare)
        elif (
            gauges.waiting < spare
            and gauges.cache_usage < FULL_CACHE
            and gauges.running + gauges.waiting >= 0.8 * self.limit
        ):
            # Only an engine that really holds what it was given gets more: a fast one is empty at every look.
            self.limit = max(round(self.limit * GROWTH), self.limit + spare)
        self.limit = min(MOST_LIMIT, max(LEAST_LIMIT, self.limit))
