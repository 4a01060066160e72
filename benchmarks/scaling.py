"""Measure how the pipeline scales, with the simulated engine: more lines, and more workers.

    python benchmarks/scaling.py [--largest 200000] [--no-workers] [--json FILE]

The first table is the rate and the cost per line from 1,000 to 200,000 lines through one gpu worker whose engine
answers at once (200,000 are four batches: a batch has 50,000 lines at most). A batch costs something however short it
is, so the cost of a line beyond the first thousand, and what is left of a thousand without it, are shown as well. The
second table is the rate of one gpu cluster and of two on one database, whose engines answer at a fixed rate each, as
two hosts have it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vbatch_site.database import ensure_url
from vbatch_site.tests.servers import ROOT, TERMINAL, Server, chat_line, wait_until

LARGEST_BATCH = 50_000
SIZES = (1_000, 10_000, 50_000, 200_000)
FIXED_RATE = 250  # lines a second of one engine; far below what the machine can do for two
FIXED_LINES = 10_000


def content(lines: int, start: int = 0) -> str:
    """Return an input file of ordinary short requests."""
    return "".join(chat_line(f"line-{i}", f"{i}: what is known of number {i}?") for i in range(start, start + lines))


def run(server: Server, lines: int) -> float:
    """Return the lines per second from the first batch's creation to the last one's files."""
    sizes = [min(LARGEST_BATCH, lines - done) for done in range(0, lines, LARGEST_BATCH)]
    files = [server.upload(content(size)) for size in sizes]
    began = time.monotonic()
    ids = []
    for file_id in files:
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        ids.append(server.request("POST", "/v1/batches", body)[2]["id"])
    done = 0
    for batch_id in ids:
        while (batch := server.batch(batch_id))["status"] not in TERMINAL:
            time.sleep(0.1 if lines > LARGEST_BATCH // 10 else 0.02)  # a look costs the web server some milliseconds
        done += batch["request_counts"]["completed"]
    seconds = time.monotonic() - began
    if done != lines:
        raise SystemExit(f"{done} of {lines} lines were answered")
    return lines / seconds


def by_lines(largest: int) -> dict[str, float]:
    """Return the lines per second for ever more lines."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as folder:
        server = Server(Path(folder) / "home")
        del server.env["VBATCH_SIM_REQUEST_LOG"]
        with server:
            run(server, 500)  # pays for starting the engine
            for lines in SIZES:
                if lines <= largest:
                    # A thousand lines are over in half a second: ten times in a row is a figure.
                    rates = sorted(run(server, lines) for _ in range(max(1, 10_000 // lines)))
                    found[f"{lines} lines"] = rates[len(rates) // 2]
    return found


def costs(rates: dict[str, float]) -> dict[str, float]:
    """Return what a line costs, in microseconds, and the fixed cost of a batch, in milliseconds."""
    sizes = [int(name.split()[0]) for name in rates]
    seconds = [size / rate for size, rate in zip(sizes, rates.values(), strict=True)]
    found = {f"line of {size}, us": 1e6 * spent / size for size, spent in zip(sizes, seconds, strict=True)}
    if len(sizes) > 1:
        each = [(seconds[i] - seconds[0]) / (sizes[i] - sizes[0]) for i in range(1, len(sizes))]
        found |= {f"beyond 1000, of {size}, us": 1e6 * cost for size, cost in zip(sizes[1:], each, strict=True)}
        found["fixed cost of a batch, ms"] = 1e3 * (seconds[0] - sizes[0] * each[0])
    return found


def by_workers() -> dict[str, float]:
    """Return the lines per second of one gpu cluster and of two."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as folder:
        server = Server(Path(folder) / "home", VBATCH_SIM_LINES_PER_SECOND=str(FIXED_RATE), VBATCH_GPU_WORKERS="1")
        del server.env["VBATCH_SIM_REQUEST_LOG"]
        with server:
            run(server, 500)
            found["one cluster"] = run(server, FIXED_LINES)
            # A second host has slots of its own; on this one the second cluster is let to the second slot.
            env = {**os.environ, **server.env, "Q_CLUSTER_NAME": "gpu", "VBATCH_GPU_WORKERS": "2"}
            second = subprocess.Popen([sys.executable, "manage.py", "qcluster"], env=env, cwd=ROOT)
            try:
                run(server, FIXED_LINES)  # on the way both engines get loaded
                running = "SELECT count(*) FROM workers_service WHERE state = 'running'"
                wait_until(lambda: server.query(running) == [(2,)], 60)
                found["two clusters"] = run(server, FIXED_LINES)
            finally:
                second.terminate()
                second.wait(60)
    found["two over one"] = found["two clusters"] / found["one cluster"]
    return found


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=200_000)
    parser.add_argument("--no-workers", dest="workers", action="store_false", help="leave the second table out")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ensure_url()
    rates = by_lines(options.largest)
    figures = {"lines per second": rates, "cost": costs(rates), "workers": by_workers() if options.workers else {}}
    for title, values in figures.items():
        sys.stdout.write(f"{title}\n")
        for name, value in values.items():
            sys.stdout.write(f"    {name:28} {value:12.2f}\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
