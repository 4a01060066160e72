"""Compare `manage.py run_batch` with vLLM's own batch runner: the same file, the same engine arguments, by turns.

    python benchmarks/run_batch.py [--only NAME] [--part 1.0] [--rounds 1] [--json FILE]

What is compared is the rate while requests are generated, without the time to load the model: vLLM's between the
first and the last drawing of its progress bar, ours from the moment the engine was ready to the last result. The last
row is another question: how long a person waits for 100 short answers from a server that is warm, against a cold run.
Needs the sample models (`make samples`). On two cores without AVX-512 all of it takes about an hour.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import workloads
from workloads import MODEL, WORKLOADS, Workload

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "var" / "models" / "SmolLM2-135M-Instruct"
ARGUMENTS = "--enforce-eager --max-model-len 2048 --dtype float32"
WARM = "warm server"
WARM_AT_LEAST = 5.0


def environment(home: Path, arguments: str) -> dict[str, str]:
    """Return the environment of both runs: one core kept from the model, as vLLM does where it isn't told."""
    return {
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
        **os.environ,
        "VBATCH_HOME": str(home),
        "VBATCH_VLLM_ARGS": arguments,
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2"),
        "HF_HUB_OFFLINE": "1",
        "DATABASE_URL": "",
    }


def tokens(path: Path) -> int:
    """Return the generated tokens of an output file."""
    total = 0
    for line in path.read_text().splitlines():
        total += json.loads(line)["response"]["body"]["usage"]["completion_tokens"]
    return total


def peer(source: Path, folder: Path, arguments: str) -> dict[str, float]:
    """Run vLLM's own runner; return requests per second, tokens and the seconds of the whole command."""
    out = folder / "peer.jsonl"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch", "-i", str(source), "-o", str(out)]
    command += ["--model", str(FOLDER), "--served-model-name", MODEL, *shlex.split(arguments)]
    started = time.monotonic()
    began = ended = 0.0
    said: list[str] = []
    with subprocess.Popen(
        command,
        env=environment(folder, arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    ) as process:
        # Its bar is drawn when the first request is submitted and when the last is done; the rate it shows is smoothed.
        for line in process.stdout or ():
            said.append(line)
            if "Running batch" in line:
                began = began or time.monotonic()
                ended = time.monotonic()
    if process.returncode or not began or not out.exists():
        raise SystemExit("".join(said[-30:]) + "vLLM's run_batch failed")
    count = len(out.read_text().splitlines())
    return {
        "requests_per_second": count / (ended - began),
        "tokens": tokens(out),
        "seconds": time.monotonic() - started,
    }


def ours(source: Path, folder: Path, arguments: str) -> dict[str, float]:
    """Run our own command; return requests per second, tokens and the part of the prompts that was cached."""
    home = _home(folder)
    out = folder / "ours.jsonl"
    env = environment(home, arguments)
    subprocess.run(
        [sys.executable, "manage.py", "run_batch", str(source), "-o", str(out)],
        env=env,
        check=True,
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    code = (
        "from batches.models import Batch; from workers.models import Service;"
        "b = Batch.objects.order_by('-created_at').first(); s = Service.objects.order_by('-created_at').first();"
        "print('seconds', (b.finalizing_at - s.ready_at).total_seconds(), 'count', b.completed,"
        " 'cached', b.cached_tokens / max(1, b.input_tokens))"
    )
    said = subprocess.run(
        [sys.executable, "manage.py", "shell", "-c", code],
        env=env,
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    found = re.search(r"seconds ([\d.]+) count (\d+) cached ([\d.]+)", said)
    if found is None:
        raise SystemExit(f"no batch found: {said}")
    rate = int(found[2]) / float(found[1])
    return {"requests_per_second": rate, "tokens": tokens(out), "cached": float(found[3])}


def _home(folder: Path) -> Path:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    if not (home / "models").exists():
        (home / "models").symlink_to(FOLDER.parent)
    return home


def warm(source: Path, folder: Path) -> float:
    """Return the seconds from upload to answers on a server whose engine has the model loaded."""
    sys.path.insert(0, str(ROOT))
    from vbatch_site.database import ensure_url
    from vbatch_site.tests.servers import Server

    ensure_url()
    home = _home(folder)
    server = Server(home, VBATCH_ENGINE="vllm", VBATCH_VLLM_ARGS=ARGUMENTS, **cache())
    with server:
        server.wait(server.create(workloads.short(0.1)[0] + "\n"), 600)
        began = time.monotonic()
        batch = server.wait(server.create(source.read_text()), 600)
        output, errors = server.lines(batch)
        seconds = time.monotonic() - began
        assert len(output) == len(source.read_text().splitlines()) and not errors
        return seconds


def cache() -> dict[str, str]:
    """Return what an engine needs of the environment."""
    return {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2"), "HF_HUB_OFFLINE": "1"}


def compare(workload: Workload, part: float, rounds: int) -> dict[str, object]:
    """Run one workload on both, by turns; return the figures."""
    runs = []
    arguments = f"{ARGUMENTS} {workload.arguments}".strip()
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        folder = Path(name)
        source = folder / "in.jsonl"
        lines = workload.write(part)
        source.write_text("\n".join(lines) + "\n")
        for number in range(rounds):
            # The one that goes first in one round goes second in the next, so that a machine that slows down is fair.
            pair = {}
            for who in ([peer, ours], [ours, peer])[number % 2]:
                pair[who.__name__] = who(source, folder, arguments)
            theirs, mine = pair["peer"], pair["ours"]
            runs.append(
                {
                    "vllm": theirs["requests_per_second"],
                    "vbatch": mine["requests_per_second"],
                    "ratio": mine["requests_per_second"] / theirs["requests_per_second"],
                    "vllm_tokens": theirs["tokens"],
                    "vbatch_tokens": mine["tokens"],
                    "cached": mine["cached"],
                }
            )
    return {
        "workload": workload.name,
        "requests": len(lines),
        "arguments": arguments,
        "at_least": workload.at_least,
        "runs": runs,
        "ratio": statistics.median(run["ratio"] for run in runs),
        "vllm": statistics.median(run["vllm"] for run in runs),
        "vbatch": statistics.median(run["vbatch"] for run in runs),
    }


def wait_of_a_person(part: float) -> dict[str, object]:
    """Compare a cold run of vLLM's own with a warm server of ours, on a few short requests."""
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        folder = Path(name)
        source = folder / "in.jsonl"
        lines = workloads.short(part)
        source.write_text("\n".join(lines) + "\n")
        cold = peer(source, folder, ARGUMENTS)["seconds"]
        seconds = warm(source, folder)
    return {
        "workload": WARM,
        "requests": len(lines),
        "at_least": WARM_AT_LEAST,
        "vllm": len(lines) / cold,
        "vbatch": len(lines) / seconds,
        "ratio": cold / seconds,
        "seconds": {"vllm": cold, "vbatch": seconds},
    }


def main() -> None:
    """Run what was asked for and print the table."""
    names = [workload.name for workload in WORKLOADS] + [WARM]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=names, action="append")
    parser.add_argument("--part", type=float, default=1.0, help="of each workload's requests")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    heads = ("workload", "requests", "vLLM/s", "vbatch/s", "ratio", "at least")
    sys.stdout.write("{:12} {:>8} {:>8} {:>8} {:>7} {:>8}\n".format(*heads))
    for name in options.only or names:
        found = [workload for workload in WORKLOADS if workload.name == name]
        row = compare(found[0], options.part, options.rounds) if found else wait_of_a_person(options.part)
        rows.append(row)
        sys.stdout.write(
            f"{name:12} {row['requests']:8} {row['vllm']:8.2f} {row['vbatch']:8.2f} {row['ratio']:7.3f} "
            f"{row['at_least']:8}\n"
        )
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
