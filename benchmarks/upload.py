"""Measure uploads: how fast a large file goes in, and what that costs the web process.

    python benchmarks/upload.py [--megabytes 200] [--rounds 5] [--json FILE]

Starts a server of its own with the simulated engine and sends the same file over loopback again and again, once with
a Content-Length and once chunked, as Node's SDK sends a read stream. Rate: from the first byte sent to the answer,
which comes after the file is durable. Growth: the web process's largest resident size during the rounds, less its
size after one small upload. Written: bytes that the web process wrote, as a multiple of the file's size.
"""

import argparse
import http.client
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vbatch_site.database import ensure_url  # noqa: E402

_EDGE = "vbatch-benchmark-edge"
_BLOCK = 1 << 20


def body(size: int) -> Iterator[bytes]:
    """Yield a multipart upload of a batch file of that size."""
    yield (
        f'--{_EDGE}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{_EDGE}\r\nContent-Disposition: form-data; name="file"; filename="input.jsonl"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()
    line = (
        json.dumps({"custom_id": "x" * 36, "method": "POST", "body": {"text": "lorem ipsum " * 330}}).encode() + b"\n"
    )
    block = (line * (_BLOCK // len(line) + 1))[:_BLOCK]
    for start in range(0, size, _BLOCK):
        yield block[: size - start]
    yield f"\r\n--{_EDGE}--\r\n".encode()


class Peak:
    """The largest resident size of a process during a block."""

    def __init__(self, process: psutil.Process) -> None:
        self.process, self.bytes, self._stop = process, 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.bytes = max(self.bytes, self.process.memory_info().rss)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def send(port: int, key: str, size: int, *, chunked: bool) -> float:
    """Upload once; return the seconds it took."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": f"multipart/form-data; boundary={_EDGE}"}
    if not chunked:
        headers["Content-Length"] = str(sum(len(part) for part in body(size)))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    parts = body(size)
    started = time.monotonic()
    connection.request("POST", "/v1/files", body=parts, headers=headers, encode_chunked=chunked)
    response = connection.getresponse()
    answer = response.read()
    seconds = time.monotonic() - started
    connection.close()
    if response.status != 200:
        raise SystemExit(f"upload refused: {response.status} {answer.decode()}")
    if json.loads(answer)["bytes"] != size:
        raise SystemExit("upload stored another number of bytes")
    return seconds


def measure(port: int, key: str, web: psutil.Process, megabytes: int, rounds: int) -> list[dict[str, Any]]:
    """Return one row for each way of sending."""
    size = megabytes * 1_000_000
    rows = []
    send(port, key, 100_000, chunked=False)
    idle = web.memory_info().rss
    for chunked in (False, True):
        written = web.io_counters().write_chars
        with Peak(web) as peak:
            taken = sorted(send(port, key, size, chunked=chunked) for _ in range(rounds))
        rows.append(
            {
                "body": "chunked" if chunked else "content-length",
                "megabytes": megabytes,
                "rounds": rounds,
                "median_mb_per_s": round(megabytes / taken[rounds // 2], 1),
                "best_mb_per_s": round(megabytes / taken[0], 1),
                "worst_mb_per_s": round(megabytes / taken[-1], 1),
                "growth_mb": round((peak.bytes - idle) / 1e6, 1),
                "written_times": round((web.io_counters().write_chars - written) / rounds / size, 2),
            }
        )
    return rows


def main() -> None:
    """Print a table, and write it as JSON if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-", ignore_cleanup_errors=True) as home:
        os.environ["VBATCH_HOME"] = home
        ensure_url()
        from vbatch_site.tests.servers import Server

        with Server(Path(home)) as server:
            rows = measure(server.port, server.key, server.web(), wanted.megabytes, wanted.rounds)
    names = list(rows[0])
    widths = [max(len(name), *(len(str(row[name])) for row in rows)) for name in names]
    for cells in (names, *([str(value) for value in row.values()] for row in rows)):
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    if wanted.json:
        wanted.json.write_text(json.dumps({"benchmark": "upload", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
