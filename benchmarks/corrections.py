"""Measure preflight and continue_from: 50,000 lines looked through, run, corrected in 1 %, and run again.

    python benchmarks/corrections.py [--lines 50000] [--json FILE]

Needs the sample models (`make samples`). Lines are of 1.6 kB, words in random order, so that no prefix is shared.
Prints the seconds of a preflight, of the first batch, and of the corrected one, how many lines that one ran, and the
largest resident memory that any process reached.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pipeline import Memory  # noqa: E402

from vbatch_site.database import ensure_url  # noqa: E402
from vbatch_site.tests.servers import Server, chat_line  # noqa: E402

WORDS = 220  # a line
EDITED = 100  # one line in so many


def measure(lines: int) -> dict[str, float]:
    """Return the figures."""
    chance = random.Random(1)
    words = (ROOT / "README.md").read_text().split()
    content = [chat_line(str(i), f"{i} " + " ".join(chance.choices(words, k=WORDS))) for i in range(lines)]
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "models").symlink_to(ROOT / "var" / "models")
        with Server(home) as server:
            server.wait(server.create(chat_line("warm")))
            file_id = server.upload("".join(content))
            memory = Memory(server)
            memory.start()
            started = time.monotonic()
            report = server.request("POST", "/v1/batches/preflight", {"input_file_id": file_id})[2]
            looked = time.monotonic()
            first = server.wait(server.create(content), 1200)
            ran = time.monotonic()
            for i in range(0, lines, EDITED):
                content[i] = chat_line(str(i), f"edited {i}")
            before = len(server.requests_seen())
            again = time.monotonic()
            second_id = server.create(content, continue_from=first["id"])
            second = server.wait(second_id, 1200)
            ended = time.monotonic()
            memory.done.set()
            journal = "SELECT extract(epoch FROM min(at)) FROM batches_batchevent WHERE batch_id = %s AND status = %s"
            times = [float(server.query(journal, second_id, status)[0][0]) for status in ("validating", "in_progress")]
            assert second["request_counts"]["completed"] == lines
            return {
                "preflight_s": looked - started,
                "prompt_tokens": report["models"][0]["prompt_tokens"],
                "first_batch_s": ran - looked,
                "corrected_batch_s": ended - again,
                "corrected_validation_s": times[1] - times[0],
                "corrected_lines_run": len(server.requests_seen()) - before,
                "largest_process_MB": max(memory.peaks.values()) / 1e6,
            }


def main() -> None:
    """Print the figures, and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=50_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ensure_url()
    found = measure(options.lines)
    for name, value in found.items():
        print(f"{name:26} {value:,.1f}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
