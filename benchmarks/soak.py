"""Run many batches through one server for long, and tell whether anything grows.

    python benchmarks/soak.py [--lines 2000000] [--batches 200] [--ahead 4] [--every 10] [--json FILE] [--write]

The engine is simulated. What a batch leaves is deleted as a user would: its files, once it has ended. Every few seconds
the memory and the descriptors of the processes, the connections, the size of the database, of its log and of the table
of results are sampled. A figure is flat when, after a first quarter, it has not grown by more than its tolerance
from the run's second quarter to its last. The exit status is 1 when one is not flat. With --write the table goes into
docs/reliability.md.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict, deque
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vbatch_site.database import ensure_url
from vbatch_site.tests.chaos import report
from vbatch_site.tests.servers import Server, chat_line

# Growth of a median that is still flat: as a part, and in the figure's own unit, whichever is more. Memory that
# a runtime does not give back to the system, and pages that await a vacuum, come and go by so much.
TOLERANCE = {
    "memory": (0.10, 24 << 20),
    "descriptors": (0.10, 8),
    "connections": (0.10, 4),
    "database": (0.15, 64 << 20),
    "results": (0.25, 64 << 20),
    "log": (0.25, 256 << 20),
    "milliseconds per line": (0.15, 0.05),
}
_SIZES = """
    SELECT pg_database_size(current_database()), pg_total_relation_size('batches_result'),
           (SELECT coalesce(sum(size), 0) FROM pg_ls_waldir()),
           (SELECT count(*) FROM pg_stat_activity WHERE datname = current_database())
"""


class Samples(threading.Thread):
    """Looks at a server until it is told to stop."""

    def __init__(self, server: Server, every: float) -> None:
        super().__init__(daemon=True)
        self.server, self.every = server, every
        self.started = time.monotonic()
        self.series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.done = threading.Event()

    def add(self, name: str, value: float) -> None:
        """Note one value."""
        self.series[name].append((time.monotonic() - self.started, value))

    def run(self) -> None:
        """Sample."""
        while not self.done.wait(self.every):
            # By role: django-q2 replaces its workers from time to time.
            totals: Counter[str] = Counter()
            for process in self.server.tree():
                with suppress(psutil.Error):
                    role = _role(process)
                    totals[f"memory: {role}"] += process.memory_info().rss
                    totals[f"descriptors: {role}"] += process.num_fds()
            for name, value in totals.items():
                self.add(name, float(value))
            database, results, log, connections = self.server.query(_SIZES)[0]
            self.add("database", float(database))
            self.add("results", float(results))
            self.add("log", float(log))
            self.add("connections", float(connections))


def _role(process: psutil.Process) -> str:
    command = process.cmdline()
    for word, role in (("guard.py", "guard"), ("uvicorn", "web"), ("workers.sim", "engine"), ("serve", "serve")):
        if any(word in part for part in command):
            return role
    # A cluster's process has written its title over its environment; the guard above it has not.
    names = (above.environ().get("Q_CLUSTER_NAME") for above in process.parents())
    return f"{next(filter(None, names), '?')} cluster"


def judge(name: str, points: list[tuple[float, float]]) -> tuple[float, float, bool]:
    """Return the medians of the second and the last quarter, and whether the series is flat."""
    last = points[-1][0]
    second = [value for at, value in points if last * 0.25 <= at < last * 0.5]
    fourth = [value for at, value in points if at >= last * 0.75]
    if not second or not fourth:
        return 0.0, 0.0, True
    before, after = median(second), median(fourth)
    part, least = TOLERANCE[name.partition(":")[0]]
    return before, after, after - before <= max(part * before, least)


def soak(lines: int, batches: int, ahead: int, every: float) -> Samples:
    """Run all batches, a few at a time; return the samples."""
    size = lines // batches
    content = "".join(chat_line(f"line-{i}", f"{i}: what is known of number {i}?") for i in range(size))
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as folder:
        server = Server(Path(folder) / "home")
        del server.env["VBATCH_SIM_REQUEST_LOG"]
        with server:
            server.wait(server.create(chat_line("first")))
            samples = Samples(server, every)
            samples.start()
            running: deque[str] = deque()
            done, ended_at = 0, time.monotonic()
            for number in range(batches + ahead):
                if number < batches:
                    running.append(server.create(content))
                if len(running) < ahead and number < batches:
                    continue
                batch = server.wait(running.popleft(), 3600)
                if batch["request_counts"] != {"total": size, "completed": size, "failed": 0}:
                    raise SystemExit(f"not all lines were answered: {batch}")
                for file_id in (batch["input_file_id"], batch["output_file_id"]):
                    server.request("DELETE", f"/v1/files/{file_id}")
                done += 1
                now = time.monotonic()
                samples.add("milliseconds per line", (now - ended_at) / size * 1000)
                ended_at = now
                if done % max(1, batches // 20) == 0:
                    sys.stdout.write(f"{done} of {batches} batches, {time.monotonic() - samples.started:.0f} s\n")
                    sys.stdout.flush()
                if not running:
                    break
            samples.done.set()
            samples.join()
    return samples


def table(found: dict[str, dict[str, Any]]) -> str:
    """Return the figures in Markdown, bytes as megabytes."""
    rows = ["| figure | second quarter | last quarter | |\n| --- | ---: | ---: | --- |\n"]
    for name, figures in found.items():
        kind = name.partition(":")[0]
        scale, unit = (1e6, " MB") if kind in ("memory", "database", "results", "log") else (1, "")
        digits = 2 if kind == "milliseconds per line" else 0
        before, after = (f"{figures[key] / scale:,.{digits}f}{unit}" for key in ("before", "after"))
        rows.append(f"| {name} | {before} | {after} | {'flat' if figures['flat'] else 'grows'} |\n")
    return "".join(rows)


def main() -> None:
    """Print whether all is flat."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--ahead", type=int, default=4, help="batches that are there at a time")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two samples")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args()
    ensure_url()
    samples = soak(options.lines, options.batches, options.ahead, options.every)
    found, all_flat = {}, True
    for name, points in sorted(samples.series.items()):
        before, after, is_flat = judge(name, points)
        all_flat &= is_flat
        found[name] = {"before": before, "after": after, "flat": is_flat, "samples": points}
        sys.stdout.write(f"{name:40} {before:16.2f} {after:16.2f}  {'flat' if is_flat else 'GROWS'}\n")
    if options.json:
        options.json.write_text(
            json.dumps({"lines": options.lines, "batches": options.batches, "series": found}) + "\n"
        )
    if options.write:
        seconds = samples.series["milliseconds per line"][-1][0]
        said = (
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} processors: {options.lines:,} lines in {options.batches}"
            f" batches, {seconds / 60:.0f} minutes, {options.lines / seconds:,.0f} lines a second."
        )
        report.write("benchmarks/soak.py", table(found), said)
    if not all_flat:
        sys.exit(1)


if __name__ == "__main__":
    main()
