"""Measure live requests: what the proxy costs, and how a batch and people share an engine.

    python benchmarks/live.py [--engine sim|vllm|both] [--lines 400] [--rate 3|0.4] [--idle 60] [--json FILE]

Proxy (simulated engine): the median time to the first token through the server less the one straight from the engine,
and how many threads the web process has with 500 streams open. Sharing: the time to the first token of streamed chats
that come at a steady rate, first alone and then while a batch runs, and the rate of that batch over the rate of the
same batch alone. Real vLLM needs the sample models (`make samples`).
"""

import argparse
import asyncio
import json
import math
import operator
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vbatch_site.database import ensure_url  # noqa: E402
from vbatch_site.tests.servers import MODEL, TERMINAL, Server, chat_line  # noqa: E402

STREAMS = 500
# A first token after 25 ms alone, a GPU's curve of slowness, at most 128 requests at once.
SIM = {
    "VBATCH_SIM_LATENCY_MS": "25",
    "VBATCH_SIM_TOKENS_PER_SECOND": "60",
    "VBATCH_SIM_CONTENTION": "0.1",
    "VBATCH_SIM_CONCURRENCY": "128",
}
VLLM = {
    "VBATCH_ENGINE": "vllm",
    "VBATCH_VLLM_ARGS": "--enforce-eager --max-model-len 2048",
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "HF_HUB_OFFLINE": "1",
}

# Live requests a second. Two cores answer about three with nothing else to do; with that many no batch gets on.
RATES = {"sim": 3.0, "vllm": 0.4}


def say(text: str) -> None:
    """Tell how far it is: a run on a slow machine takes a quarter of an hour."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def percentile(values: list[float], part: float) -> float:
    """Return the least value that this part of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def chat(i: int, **fields: Any) -> dict[str, Any]:
    """Return the body of a short streamed chat."""
    content = f"{i}: what is the capital of the country number {i % 50} in the alphabet?"
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 16,
        "stream": True,
    } | fields


class Target:
    """A server or an engine that chats are sent to."""

    def __init__(self, base_url: str, key: str) -> None:
        self.url = f"{base_url}/chat/completions"
        # uvicorn closes what was idle for five seconds, at times just as a request goes out on it.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3)
        self.session = aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {key}"})

    async def __aenter__(self) -> "Target":
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.session.close()

    async def chat(self, body: dict[str, Any]) -> float:
        """Return the seconds to the first token, after the whole stream was read."""
        began = time.monotonic()
        async with self.session.post(self.url, json=body) as response:
            if response.status != 200:
                raise SystemExit(f"status {response.status}: {await response.text()}")
            await response.content.readany()
            seconds = time.monotonic() - began
            await response.read()
        return seconds


async def measure_proxy(server: Server, engine_url: str, engine_key: str, rounds: int) -> dict[str, float]:
    """Return the median times straight and through the server, asked by turns, and the threads of 500 streams."""
    async with Target(server.base_url, server.key) as proxy, Target(f"{engine_url}/v1", engine_key) as straight:
        times: dict[Target, list[float]] = {proxy: [], straight: []}
        for i in range(rounds + 10):
            for target in (proxy, straight)[:: 1 if i % 2 else -1]:
                seconds = await target.chat(chat(i, max_tokens=2))
                if i >= 10:
                    times[target].append(seconds)
        streams = [asyncio.create_task(proxy.chat(chat(i, max_tokens=60, ignore_eos=True))) for i in range(STREAMS)]
        await asyncio.sleep(3)
        still_open = sum(not task.done() for task in streams)
        threads = server.web().num_threads()
        await asyncio.gather(*streams)
    through, direct = (statistics.median(found) * 1000 for found in times.values())
    return {
        "straight_ms": direct,
        "through_ms": through,
        # What else the machine does falls on both of a pair.
        "added_ms": statistics.median(map(operator.sub, times[proxy], times[straight])) * 1000,
        "least_added_ms": (min(times[proxy]) - min(times[straight])) * 1000,
        "streams_open": still_open,
        "threads": threads,
    }


class People(asyncio.Event):
    """Chats that come at a steady rate, on average, until told to stop."""

    def __init__(self, target: Target, rate: float) -> None:
        super().__init__()
        self.target, self.rate = target, rate
        self.times: list[tuple[float, float]] = []

    async def run(self) -> None:
        """Send them, none waiting for another."""
        chance = random.Random(3)
        running: set[asyncio.Task[None]] = set()
        while not self.is_set():
            task = asyncio.create_task(self._one(len(self.times)))
            running.add(task)
            task.add_done_callback(running.discard)
            await asyncio.sleep(chance.uniform(0.5, 1.5) / self.rate)
        await asyncio.gather(*running)

    async def _one(self, i: int) -> None:
        began = time.monotonic()
        self.times.append((began, await self.target.chat(chat(i))))

    def between(self, begin: float, end: float) -> list[float]:
        """Return the times of those that came between two moments."""
        return [seconds for at, seconds in self.times if begin <= at < end]


def run_batch(server: Server, lines: list[str]) -> float:
    """Run a batch; return its lines a second from the first line to the last."""
    batch_id = server.create(lines)
    while server.batch(batch_id)["status"] not in TERMINAL:
        time.sleep(0.5)
    counts = server.batch(batch_id)["request_counts"]
    if counts["completed"] != len(lines):
        raise SystemExit(f"the batch ended with {counts}")
    took = server.query(
        "SELECT extract(epoch FROM finalizing_at - in_progress_at) FROM batches_batch WHERE id = %s", batch_id
    )
    return len(lines) / float(took[0][0])


async def measure_sharing(server: Server, count: int, rate: float, idle_seconds: float) -> dict[str, float]:
    """Return how long live requests take alone and beside a batch, and what is left of the batch's rate."""
    chance = random.Random(5)
    numbers = iter(range(1_000_000))

    def lines() -> list[str]:
        return [
            chat_line(
                f"l{i}", f"{next(numbers)}: tell me about rivers", max_tokens=chance.randint(16, 96), ignore_eos=True
            )
            for i in range(count)
        ]

    async with Target(server.base_url, server.key) as target:
        await target.chat(chat(0))
        alone = await asyncio.to_thread(run_batch, server, lines())
        say(f"batch alone: {alone:.2f} lines a second")
        people = People(target, rate)
        living = asyncio.create_task(people.run())
        await asyncio.sleep(2)
        began = time.monotonic()
        await asyncio.sleep(idle_seconds)
        mixed = time.monotonic()
        say(f"people alone: 99th percentile {percentile(people.between(began, mixed), 0.99) * 1000:.0f} ms")
        beside = await asyncio.to_thread(run_batch, server, lines())
        ended = time.monotonic()
        people.set()
        await living
    idle, busy = people.between(began, mixed), people.between(mixed, ended)
    return {
        "live_requests_idle": len(idle),
        "live_requests_beside": len(busy),
        "idle_p50_ms": percentile(idle, 0.5) * 1000,
        "idle_p99_ms": percentile(idle, 0.99) * 1000,
        "beside_p50_ms": percentile(busy, 0.5) * 1000,
        "beside_p99_ms": percentile(busy, 0.99) * 1000,
        "p99_ratio": percentile(busy, 0.99) / percentile(idle, 0.99),
        "batch_alone_lines_per_second": alone,
        "batch_beside_lines_per_second": beside,
        "batch_rate_kept": beside / alone,
    }


def engine_of(server: Server) -> tuple[str, str]:
    """Return the URL and key of the running engine."""
    pk, url = server.query("SELECT id, url FROM workers_service WHERE state = 'running' ORDER BY id DESC")[0]
    code = f"from workers.keys import engine_key; print(engine_key({pk}))"
    return url, server.manage("shell", "-v0", "-c", code)


def measure(engine: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the figures of one engine."""
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-", ignore_cleanup_errors=True) as folder:
        home = Path(folder) / "home"
        if engine == "vllm":
            home.mkdir()
            (home / "models").symlink_to(ROOT / "var" / "models")
        else:
            with Server(Path(folder) / "proxy", VBATCH_SIM_TOKENS_PER_SECOND="10") as server:
                server.wait(server.create(chat_line("warm")))
                found["proxy"] = asyncio.run(measure_proxy(server, *engine_of(server), options.rounds))
        with Server(home, **(VLLM if engine == "vllm" else SIM)) as server:
            server.wait(server.create(chat_line("warm")), 600)
            found[f"sharing, {engine}"] = asyncio.run(
                measure_sharing(server, options.lines, options.rate or RATES[engine], options.idle)
            )
    return found


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=["sim", "vllm", "both"], default="both")
    parser.add_argument("--lines", type=int, default=400)
    parser.add_argument("--rate", type=float, help="live requests a second; 3 of the simulated engine, 0.4 of vLLM")
    parser.add_argument("--idle", type=float, default=60, help="seconds of live requests alone")
    parser.add_argument("--rounds", type=int, default=300, help="requests each way through the proxy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ensure_url()
    figures: dict[str, dict[str, float]] = {}
    for engine in ("sim", "vllm") if options.engine == "both" else (options.engine,):
        figures |= measure(engine, options)
    for part, values in figures.items():
        for name, value in values.items():
            sys.stdout.write(f"{part:14} {name.replace('_', ' '):32} {value:10.2f}\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
