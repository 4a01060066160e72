"""Let hundreds of clients use one server at once, for minutes, and then far too many.

    python benchmarks/load.py [--clients 300] [--seconds 120] [--crowd 1500] [--json FILE] [--write]

Of the clients a sixth uploads and creates batches, a sixth downloads results, a third polls and a third streams chats;
each pauses up to a second between two requests. Prints for each route how many requests were answered, the times to
the whole answer (for streams to the first bytes), and how many failed. Then a crowd asks without a pause for 15 s: it
is refused with 503 and told when to come back, and once it has gone, the time to the first answer is measured.
The clients take their part of the machine's processors. With --write the table goes into docs/reliability.md.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vbatch_site.database import ensure_url
from vbatch_site.tests.chaos import report
from vbatch_site.tests.servers import MODEL, Server, chat_line

LINES = 20
CROWD_SECONDS = 15.0
PAUSE_SECONDS = 1.0


class Tally:
    """Times and failures by route."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.failures: dict[str, Counter[str]] = defaultdict(Counter)

    async def note(self, route: str, work: Callable[[], Awaitable[aiohttp.ClientResponse]]) -> bytes | None:
        """Do one request; return its body, None when it failed."""
        started = time.perf_counter()
        try:
            response = await work()
            body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.failures[route][type(error).__name__] += 1
            return None
        if response.status != 200:
            self.failures[route][str(response.status)] += 1
            if response.status in (429, 503):
                await asyncio.sleep(float(response.headers.get("retry-after", "1")))
            return None
        self.times[route].append(time.perf_counter() - started)
        return body

    def figures(self) -> dict[str, dict[str, float | dict[str, int]]]:
        """Return what is printed."""
        found: dict[str, dict[str, float | dict[str, int]]] = {}
        for route in sorted({*self.times, *self.failures}):
            times = sorted(self.times[route]) or [0.0]
            found[route] = {
                "answered": len(self.times[route]),
                "p50": times[len(times) // 2],
                "p99": times[min(len(times) - 1, int(len(times) * 0.99))],
                "failures": dict(self.failures[route]),
            }
        return found


class Load:
    """The clients of one server."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.base, self.session = server.base_url, session
        self.tally = Tally()
        self.batches: list[str] = []
        self.outputs: list[str] = []
        self.until = 0.0

    async def run(self, clients: int, seconds: float) -> None:
        """Let all clients work for a time."""
        self.until = time.monotonic() + seconds
        await self.create()
        roles = [self.create, self.download, self.poll, self.poll, self.stream, self.stream]
        await asyncio.gather(*(self._again(roles[i % len(roles)]) for i in range(clients)))

    async def _again(self, role: Callable[[], Awaitable[None]]) -> None:
        while time.monotonic() < self.until:
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
            await role()

    async def create(self) -> None:
        """Upload a file and start a batch with it."""
        content = "".join(chat_line(f"l{i}", f"question {i}") for i in range(LINES))
        form = aiohttp.FormData()
        form.add_field("purpose", "batch")
        form.add_field("file", content.encode(), filename="input.jsonl", content_type="application/jsonl")
        body = await self.tally.note("POST /v1/files", lambda: self.session.post(f"{self.base}/files", data=form))
        if body is None:
            return
        wanted = {
            "input_file_id": json.loads(body)["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        }
        body = await self.tally.note("POST /v1/batches", lambda: self.session.post(f"{self.base}/batches", json=wanted))
        if body is not None:
            self.batches.append(json.loads(body)["id"])

    async def poll(self) -> None:
        """Look how a batch is."""
        if not self.batches:
            return
        url = f"{self.base}/batches/{random.choice(self.batches[-200:])}"
        body = await self.tally.note("GET /v1/batches/{id}", lambda: self.session.get(url))
        if body is not None and (output := json.loads(body)["output_file_id"]):
            self.outputs.append(output)

    async def download(self) -> None:
        """Download the results of a batch."""
        if self.outputs:
            url = f"{self.base}/files/{random.choice(self.outputs[-200:])}/content"
            await self.tally.note("GET /v1/files/{id}/content", lambda: self.session.get(url))

    async def stream(self) -> None:
        """Stream a chat."""
        route = "POST /v1/chat/completions"
        wanted = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True, "max_tokens": 16}
        started = time.perf_counter()
        try:
            async with self.session.post(f"{self.base}/chat/completions", json=wanted) as response:
                if response.status != 200:
                    self.tally.failures[route][str(response.status)] += 1
                    return
                await response.content.readany()
                self.tally.times[route].append(time.perf_counter() - started)
                async for _ in response.content.iter_any():
                    pass
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.tally.failures[route][type(error).__name__] += 1

    async def crowd(self, clients: int) -> dict[str, float]:
        """Ask far too much; return how many were answered, refused and failed, and the seconds to recover."""
        counts: Counter[str] = Counter()
        refused_in: list[float] = []
        until = time.monotonic() + CROWD_SECONDS

        async def ask() -> None:
            while time.monotonic() < until:
                started = time.perf_counter()
                try:
                    async with self.session.get(f"{self.base}/batches?limit=1") as response:
                        await response.read()
                        counts[str(response.status)] += 1
                        if response.status == 503:
                            refused_in.append(time.perf_counter() - started)
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    counts[type(error).__name__] += 1

        await asyncio.gather(*(ask() for _ in range(clients)))
        gone = time.monotonic()
        while True:
            async with self.session.get(f"{self.base}/batches?limit=1") as response:
                if response.status == 200:
                    break
        found: dict[str, float] = dict(counts)
        if refused_in:
            found["refused in, p99"] = sorted(refused_in)[int(len(refused_in) * 0.99)]
        found["seconds to the first answer after"] = time.monotonic() - gone
        return found


async def measure(server: Server, clients: int, seconds: float, crowd: int) -> dict[str, object]:
    """Return all figures."""
    headers = {"Authorization": f"Bearer {server.key}"}
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        load = Load(server, session)
        await load.run(clients, seconds)
        figures: dict[str, object] = {"routes": load.tally.figures()}
        if crowd:
            figures["crowd"] = await load.crowd(crowd)
    return figures


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--crowd", type=int, default=1500, help="clients of the overload; 0 leaves it out")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args()
    ensure_url()
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as folder:
        server = Server(Path(folder) / "home")
        del server.env["VBATCH_SIM_REQUEST_LOG"]
        with server:
            server.wait(server.create(chat_line("first")))
            figures = asyncio.run(measure(server, options.clients, options.seconds, options.crowd))
    routes = figures["routes"]
    assert isinstance(routes, dict)
    sys.stdout.write(f"{'route':30} {'answered':>9} {'p50 ms':>9} {'p99 ms':>9}  failures\n")
    rows = ["| request | answered | median ms | p99 ms | failures |\n| --- | ---: | ---: | ---: | --- |\n"]
    for route, row in routes.items():
        failures = ", ".join(f"{name}: {count}" for name, count in row["failures"].items()) or "none"
        times = f"{row['p50'] * 1000:,.0f} | {row['p99'] * 1000:,.0f}"
        rows.append(f"| `{route}` | {row['answered']:,} | {times} | {failures} |\n")
        sys.stdout.write(
            f"{route:30} {row['answered']:9} {row['p50'] * 1000:9.0f} {row['p99'] * 1000:9.0f}  {failures}\n"
        )
    if "crowd" in figures:
        sys.stdout.write(f"crowd of {options.crowd}: {json.dumps(figures['crowd'])}\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.write:
        said = (
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} processors, which the clients used too:"
            f" {options.clients} clients for {options.seconds:.0f} s."
        )
        if isinstance(crowd := figures.get("crowd"), dict):
            what = ", ".join(f"{name} {count:,.2f}".removesuffix(".00") for name, count in crowd.items())
            said += f" Then {options.crowd:,} at once without a pause, answers by status: {what}."
        report.write("benchmarks/load.py", "".join(rows), said)


if __name__ == "__main__":
    main()
