"""Pretend to compute: who is worked on, who waits, for how long, and what the counters say."""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import itertools
from collections import Counter

from .knobs import Knobs

# Characters of a prompt that are cached together: 64 tokens of four characters. vLLM's blocks have 16 tokens; larger
# ones keep the look-up of a 4 KB prompt at a few microseconds.
BLOCK_CHARS = 256
# Blocks remembered: a million tokens, the KV cache of a small model on a large GPU.
MAX_BLOCKS = 16_384
# What /metrics calls a full KV cache where no concurrency is set.
FULL_AT_REQUESTS = 256


class PrefixCache:
    """Remember the beginnings of prompts, so that an ordered plan shows in `cached_tokens`."""

    def __init__(self) -> None:
        self._blocks: dict[int, None] = {}

    def look_up(self, prompt: str) -> int:
        """Return how many characters of the prompt were there already; remember the rest."""
        blocks = self._blocks
        cached = chain = 0
        unbroken = True
        for start in range(0, len(prompt) - BLOCK_CHARS + 1, BLOCK_CHARS):
            chain = hash((chain, prompt[start : start + BLOCK_CHARS]))
            if chain in blocks:
                # Deleted and set again: a dict keeps the order of insertion, so the oldest use stays in front.
                del blocks[chain]
                if unbroken:
                    cached += BLOCK_CHARS
            else:
                unbroken = False
            blocks[chain] = None
        while len(blocks) > MAX_BLOCKS:
            del blocks[next(iter(blocks))]
        return cached


class Engine:
    """Admit requests, pace them and count them."""

    def __init__(self, knobs: Knobs, *, by_priority: bool) -> None:
        self._knobs = knobs
        self._by_priority = by_priority
        self._line: list[tuple[int, int, asyncio.Future[None]]] = []
        self._arrivals = itertools.count()
        self._next_start = 0.0
        self._attempts: dict[bytes, int] = {}
        self.cache = PrefixCache()
        self.asleep = False
        self.woke = False
        self.running = 0
        self.waiting = 0
        self.completed = 0
        self.failed = 0
        self.aborted = 0
        self.max_running = 0
        self.priorities: Counter[int] = Counter()
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0

    @property
    def has_room(self) -> bool:
        """Tell whether one more request may be worked on."""
        limit = self._knobs.concurrency
        return not self.asleep and (not limit or self.running < limit)

    @property
    def cache_usage(self) -> float:
        """Return the part of the KV cache that the running requests would hold."""
        return min(1.0, self.running / (self._knobs.concurrency or FULL_AT_REQUESTS))

    def start(self) -> None:
        """Take a place; the caller has seen that there is room."""
        self.running += 1
        if self.running > self.max_running:
            self.max_running = self.running

    async def enter(self, priority: int) -> None:
        """Wait for a place and take it."""
        if self.has_room:
            self.start()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (priority if self._by_priority else 0, next(self._arrivals), turn))
        self.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self.waiting -= 1
            else:
                # The place was given in the same turn of the loop in which the client went away.
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place back."""
        self.running -= 1
        self.admit()

    def admit(self) -> None:
        """Give free places to those in line."""
        while self._line and self.has_room:
            turn = heapq.heappop(self._line)[2]
            if not turn.done():
                self.waiting -= 1
                self.start()
                turn.set_result(None)

    def seconds_to_first_token(self, now: float) -> float:
        """Return how long a request that starts now waits, and book its place in the rate."""
        rate = self._knobs.lines_per_second
        latency = self._knobs.latency_seconds * self._slowness
        if not rate:
            return latency
        start = max(now, self._next_start)
        self._next_start = start + 1 / rate
        return start - now + latency

    def seconds_per_token(self) -> float:
        """Return the time that one token of one request takes."""
        speed = self._knobs.tokens_per_second
        return self._slowness / speed if speed else 0.0

    @property
    def _slowness(self) -> float:
        """Return how many times longer each thing takes than for a request that is alone."""
        return 1 + self._knobs.contention * max(0, self.running - 1)

    def fails(self, text: str) -> bool:
        """Decide whether this attempt at this text is one of those that fail."""
        rate = self._knobs.failure_rate
        if not rate:
            return False
        digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
        attempt = self._attempts.get(digest, 0)
        draw = hashlib.blake2b(digest, digest_size=8, salt=attempt.to_bytes(8, "big")).digest()
        if int.from_bytes(draw, "big") >= rate * 2**64:
            # Only texts that failed are remembered, so that millions of lines don't fill the memory.
            self._attempts.pop(digest, None)
            return False
        self._attempts[digest] = attempt + 1
        return True

    def is_first(self, text: str) -> bool:
        """Tell whether this text comes for the first time; every second call for it says no."""
        digest = b"once" + hashlib.blake2b(text.encode(), digest_size=16).digest()
        if self._attempts.pop(digest, 0):
            return False
        self._attempts[digest] = 1
        return True

    def count(self, *, prompt_tokens: int, cached_tokens: int, generation_tokens: int) -> None:
        """Add a finished request to the counters of /metrics."""
        self.completed += 1
        self.prompt_tokens += prompt_tokens
        self.cached_tokens += cached_tokens
        self.generation_tokens += generation_tokens

    def stats(self) -> dict[str, object]:
        """Return what GET /sim/stats says."""
        return {
            "running": self.running,
            "waiting": self.waiting,
            "completed": self.completed,
            "failed": self.failed,
            "aborted": self.aborted,
            "max_running": self.max_running,
            "priorities": {str(priority): count for priority, count in self.priorities.items()},
        }

    def metrics(self, model: str) -> bytes:
        """Return the figures in Prometheus's text format, under vLLM's names."""
        name = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        figures: tuple[tuple[str, str, str, float], ...] = (
            ("num_requests_running", "gauge", "Requests that are worked on.", self.running),
            ("num_requests_waiting", "gauge", "Requests that wait for a place.", self.waiting),
            ("kv_cache_usage_perc", "gauge", "Part of the KV cache in use; 1 is all of it.", self.cache_usage),
            ("num_preemptions_total", "counter", "Preemptions; the simulation has none.", 0),
            ("prefix_cache_queries_total", "counter", "Tokens looked up in the prefix cache.", self.prompt_tokens),
            ("prefix_cache_hits_total", "counter", "Tokens found in the prefix cache.", self.cached_tokens),
            ("prompt_tokens_total", "counter", "Prompt tokens.", self.prompt_tokens),
            ("generation_tokens_total", "counter", "Generated tokens.", self.generation_tokens),
        )
        lines = []
        for metric, kind, help_text, value in figures:
            lines.append(f"# HELP vllm:{metric} {help_text}\n# TYPE vllm:{metric} {kind}\n")
            lines.append(f'vllm:{metric}{{engine="0",model_name="{name}"}} {float(value)}\n')
        return "".join(lines).encode()
