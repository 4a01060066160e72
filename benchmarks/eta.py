"""Hold the ETA that batches show while they run against the time at which they ended.

    python benchmarks/eta.py [--engine sim|vllm] [--only NAME] [--part 1.0] [--json FILE]

With the simulated engine the runs differ in what makes an ETA hard: answers of very different lengths, an engine that
gets slower the more it has to do, long answers at the end, a second batch that comes and takes half. With vLLM they are
the workloads of run_batch.py; that needs the sample models (`make samples`). Each batch is asked every two seconds, as
a person's page would. A range is to hold the truth in four of five cases; how wide it is, is told as a part of the time
that was really left. All runs take about ten minutes with the simulated engine, and hardly any processor time.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import run_batch  # noqa: E402
from workloads import WORKLOADS  # noqa: E402

from vbatch_site.database import ensure_url  # noqa: E402
from vbatch_site.tests.servers import TERMINAL, Server, chat_line  # noqa: E402

ASK_SECONDS = 2.0
# An ETA is in whole seconds.
ROUNDING = 1.0


class Said(NamedTuple):
    """What a batch showed at one moment; unix seconds."""

    at: float
    part: float  # of its lines that were finished
    earliest: float
    latest: float


@dataclass(frozen=True, slots=True)
class Run:
    """One way to run a batch."""

    name: str
    settings: dict[str, str]
    write: Callable[[float], list[str]]
    neighbour: bool = False  # another project's batch of the same size comes when a third is done


@dataclass(frozen=True, slots=True)
class Found:
    """How good the ranges of one run, or of one part of it, were."""

    asked: int
    held: float  # share of the ranges that held the truth
    too_early: float  # share of those whose latest was before it
    width: float  # median, in times of the time that was left


def _line(number: int, chance: random.Random, tokens: int) -> str:
    return chat_line(str(number), f"{number} {chance.random()}", max_tokens=tokens, ignore_eos=True)


def _even(part: float) -> list[str]:
    chance = random.Random(1)
    return [_line(i, chance, 20) for i in range(round(4000 * part))]


def _mixed(part: float) -> list[str]:
    chance = random.Random(2)
    return [_line(i, chance, min(2000, round(chance.lognormvariate(4, 1)))) for i in range(round(1500 * part))]


def _tail(part: float) -> list[str]:
    chance = random.Random(3)
    count = round(1500 * part)
    # Without a limit the plan can't know that these are long.
    return [_line(i, chance, 1000 if i > count * 0.95 else 60) for i in range(count)]


SIMULATED = [
    Run("even", {"VBATCH_SIM_LINES_PER_SECOND": "40", "VBATCH_SIM_LATENCY_MS": "500"}, _even),
    Run("mixed", {"VBATCH_SIM_TOKENS_PER_SECOND": "40", "VBATCH_SIM_CONCURRENCY": "32"}, _mixed),
    Run(
        "slows down",
        {"VBATCH_SIM_TOKENS_PER_SECOND": "100", "VBATCH_SIM_CONCURRENCY": "64", "VBATCH_SIM_CONTENTION": "0.02"},
        _mixed,
    ),
    Run("long tail", {"VBATCH_SIM_TOKENS_PER_SECOND": "40", "VBATCH_SIM_CONCURRENCY": "32"}, _tail),
    Run("neighbour", {"VBATCH_SIM_LINES_PER_SECOND": "40", "VBATCH_SIM_LATENCY_MS": "500"}, _even, neighbour=True),
]


def real() -> list[Run]:
    """Return the workloads of the comparison with vLLM's own runner."""
    found = []
    for workload in WORKLOADS:
        arguments = f"{run_batch.ARGUMENTS} {workload.arguments}".strip()
        settings = {"VBATCH_ENGINE": "vllm", "VBATCH_VLLM_ARGS": arguments, **run_batch.cache()}
        found.append(Run(workload.name, settings, lambda part, w=workload: [f"{x}\n" for x in w.write(part)]))  # type: ignore[misc]
    return found


def watch(server: Server, batch_id: str, when: Callable[[float], None]) -> tuple[list[Said], float]:
    """Ask a batch until it has ended; return what it said, and when it was done. `when` hears how far it is."""
    said = []
    while (batch := server.batch(batch_id))["status"] not in TERMINAL:
        counts, shown = batch["request_counts"], batch["vbatch"]
        part = (counts["completed"] + counts["failed"]) / max(counts["total"], 1)
        when(part)
        if shown["eta_latest"] is not None and batch["status"] == "in_progress":
            said.append(Said(time.time(), part, shown["eta_earliest"], shown["eta_latest"]))
        time.sleep(ASK_SECONDS)
    ended = server.query("SELECT extract(epoch FROM completed_at) FROM batches_batch WHERE id = %s", batch_id)
    return said, float(ended[0][0])


def judge(said: list[Said], ended: float) -> Found | None:
    """Return how good ranges were, None without any."""
    if not said:
        return None
    return Found(
        len(said),
        fmean(s.earliest - ROUNDING <= ended <= s.latest + ROUNDING for s in said),
        fmean(s.latest + ROUNDING < ended for s in said),
        median((s.latest - s.earliest) / max(ended - s.at, 1.0) for s in said),
    )


def measure(run: Run, part: float) -> dict[str, Any]:
    """Run one batch; return all it said, and how good that was on the whole and in its thirds."""
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as folder:
        home = Path(folder) / "home"
        home.mkdir()
        if (ROOT / "var" / "models").exists():
            (home / "models").symlink_to(ROOT / "var" / "models")
        server = Server(home, **run.settings)
        del server.env["VBATCH_SIM_REQUEST_LOG"]
        with server:
            # The engine's load is not part of the question.
            server.wait(server.create(chat_line("first")), 600)
            own = server.key
            lines = run.write(part)
            batch_id = server.create(lines)
            others: list[str] = []

            def when(done: float) -> None:
                if run.neighbour and done > 1 / 3 and not others:
                    server.key = server.manage("create_api_key", "neighbour", "--project", "neighbour")
                    others.append(server.create(lines))
                    server.key = own

            said, ended = watch(server, batch_id, when)
            created = server.query(
                "SELECT extract(epoch FROM in_progress_at) FROM batches_batch WHERE id = %s", batch_id
            )
    thirds = [judge([s for s in said if third / 3 <= s.part < (third + 1) / 3], ended) for third in range(3)]
    whole = judge(said, ended)
    return {
        "run": run.name,
        "lines": len(lines),
        "seconds": ended - float(created[0][0]),
        "whole": asdict(whole) if whole else None,
        "thirds": [asdict(third) if third else None for third in thirds],
        "ended": ended,
        "said": [s._asdict() for s in said],
    }


def _shown(found: dict[str, Any] | None) -> str:
    return f"{found['held']:6.0%} {found['width']:6.2f}" if found else f"{'-':>6} {'-':>6}"


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("sim", "vllm"), default="sim")
    parser.add_argument("--only", action="append")
    parser.add_argument("--part", type=float, default=1.0, help="of each run's requests")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ensure_url()
    rows = []
    heads = ("run", "lines", "seconds", "asked", *("held", "width") * 4)
    sys.stdout.write("{:12} {:>6} {:>8} {:>6}".format(*heads[:4]) + "  whole, then each third of the lines\n")
    sys.stdout.write(f"{'':35}" + "".join(f"  {held:>6} {width:>6}" for held, width in [heads[4:6]] * 4) + "\n")
    for run in SIMULATED if options.engine == "sim" else real():
        if options.only and run.name not in options.only:
            continue
        row = measure(run, options.part)
        rows.append(row)
        asked = row["whole"]["asked"] if row["whole"] else 0
        figures = "".join(f"  {_shown(found)}" for found in (row["whole"], *row["thirds"]))
        sys.stdout.write(f"{run.name:12} {row['lines']:6} {row['seconds']:8.1f} {asked:6}{figures}\n")
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n")
    asked = sum(row["whole"]["asked"] for row in rows if row["whole"])
    held = sum(row["whole"]["held"] * row["whole"]["asked"] for row in rows if row["whole"])
    if asked:
        sys.stdout.write(f"all: {held / asked:.0%} of {asked} ranges held the truth\n")


if __name__ == "__main__":
    main()
