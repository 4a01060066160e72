"""Measure everything but the engine: a large file through a real server with the simulated engine.

    python benchmarks/pipeline.py [--lines 50000] [--megabytes 199] [--json FILE]

Prints the time from creation to a validated batch, the lines per second from creation to the finished files, and the
largest resident memory that any process of the tree reached.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vbatch_site.database import ensure_url
from vbatch_site.tests.servers import TERMINAL, Server, chat_line


class Memory(threading.Thread):
    """Watches the resident memory of a server's processes."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self.server = server
        self.peaks: dict[str, int] = {}
        self.done = threading.Event()

    def run(self) -> None:
        """Look until told to stop."""
        while not self.done.wait(0.5):
            for process in self.server.tree():
                try:
                    name = " ".join(process.cmdline())[-80:]
                    # What a fork shares with its parent is counted once for each; the largest process is what matters.
                    self.peaks[f"{process.pid} {name}"] = max(
                        self.peaks.get(f"{process.pid} {name}", 0), process.memory_info().rss
                    )
                except psutil.Error:
                    continue


def measure(lines: int, megabytes: int) -> dict[str, float]:
    """Run one batch; return the figures."""
    filler = "lorem ipsum dolor " * max(1, (megabytes * 10**6 // lines - 230) // 18)
    content = "".join(chat_line(f"line-{i}", f"{i} {filler}") for i in range(lines)).encode()
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as folder:
        server = Server(Path(folder) / "home")
        del server.env["VBATCH_SIM_REQUEST_LOG"]
        with server:
            # The first batch pays for starting the engine.
            server.wait(server.create(chat_line("first")))
            memory = Memory(server)
            memory.start()
            file_id = server.upload(content)
            body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
            batch_id = server.request("POST", "/v1/batches", body)[2]["id"]
            while server.batch(batch_id)["status"] not in TERMINAL:
                time.sleep(0.5)
            memory.done.set()
            validated, ran, ended = server.query(
                "SELECT extract(epoch FROM in_progress_at - created_at),"
                " extract(epoch FROM finalizing_at - in_progress_at),"
                " extract(epoch FROM completed_at - created_at) FROM batches_batch WHERE id = %s",
                batch_id,
            )[0]
            done = server.batch(batch_id)["request_counts"]["completed"]
    if done != lines:
        raise SystemExit(f"{done} of {lines} lines were answered")
    return {
        "lines": lines,
        "megabytes": len(content) / 10**6,
        "validated_seconds": float(validated),
        "run_lines_per_second": lines / float(ran),
        "lines_per_second": lines / float(ended),
        "largest_process_megabytes": max(memory.peaks.values()) / 10**6,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--megabytes", type=int, default=199)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ensure_url()
    figures = measure(options.lines, options.megabytes)
    for name, value in figures.items():
        sys.stdout.write(f"{name.replace('_', ' '):28} {value:12.1f}\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
