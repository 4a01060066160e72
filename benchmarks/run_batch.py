"""Compare `manage.py run_batch` with vLLM's own batch runner: the same file, the same engine arguments, by turns.

    python benchmarks/run_batch.py [--requests 600] [--rounds 2] [--json FILE]

What is compared is the rate while requests are generated, without the time to load the model: vLLM's between the
first and the last drawing of its progress bar, ours from the moment the engine was ready to the last result. Needs the
sample models (`make samples`).
"""

import argparse
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL = ROOT / "var" / "models" / "SmolLM2-135M-Instruct"
ARGUMENTS = "--enforce-eager --max-model-len 2048 --dtype float32"
SUBJECTS = ["rivers", "clocks", "whales", "bread", "bridges", "violins", "maps", "volcanoes", "bees", "trains"]


def requests(count: int, seed: int = 1) -> str:
    """Return an input file of unrelated chat requests with 16 to 96 tokens to generate."""
    chance = random.Random(seed)  # noqa: S311
    lines = []
    for i in range(count):
        subject, other = chance.sample(SUBJECTS, 2)
        body = {
            "model": NAME,
            "messages": [
                {"role": "user", "content": f"{i}: tell me {chance.randint(2, 99)} facts on {subject} and {other}."}
            ],
            "max_tokens": chance.randint(16, 96),
            "temperature": 0,
        }
        line = {"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def environment(home: Path) -> dict[str, str]:
    """Return the environment of both runs."""
    return {
        **os.environ,
        "VBATCH_HOME": str(home),
        "VBATCH_VLLM_ARGS": ARGUMENTS,
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


def peer(source: Path, folder: Path) -> dict[str, float]:
    """Run vLLM's own runner; return requests per second and tokens."""
    out = folder / "peer.jsonl"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.run_batch", "-i", str(source), "-o", str(out)]
    command += ["--model", str(MODEL), "--served-model-name", NAME, *shlex.split(ARGUMENTS)]
    began = ended = 0.0
    said: list[str] = []
    with subprocess.Popen(
        command, env=environment(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
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
    return {"requests_per_second": count / (ended - began), "tokens": tokens(out)}


def ours(source: Path, folder: Path) -> dict[str, float]:
    """Run our own command; return requests per second and tokens."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    if not (home / "models").exists():
        (home / "models").symlink_to(MODEL.parent)
    out = folder / "ours.jsonl"
    env = environment(home)
    subprocess.run(
        [sys.executable, "manage.py", "run_batch", str(source), "-o", str(out)], env=env, check=True, cwd=ROOT
    )
    code = (
        "from batches.models import Batch; from workers.models import Service;"
        "b = Batch.objects.order_by('-created_at').first(); s = Service.objects.order_by('-created_at').first();"
        "print('seconds', (b.finalizing_at - s.ready_at).total_seconds(), 'count', b.completed)"
    )
    said = subprocess.run(
        [sys.executable, "manage.py", "shell", "-c", code],
        env=env,
        check=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    found = re.search(r"seconds ([\d.]+) count (\d+)", said)
    if found is None:
        raise SystemExit(f"no batch found: {said}")
    return {"requests_per_second": int(found[2]) / float(found[1]), "tokens": tokens(out)}


def main() -> None:
    """Run both by turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        folder = Path(name)
        source = folder / "in.jsonl"
        source.write_text(requests(options.requests))
        for number in range(options.rounds):
            pair = {"run_batch of vLLM": peer(source, folder), "run_batch of vbatch": ours(source, folder)}
            theirs, mine = pair.values()
            runs.append(
                {
                    "vllm": theirs["requests_per_second"],
                    "vbatch": mine["requests_per_second"],
                    "ratio": mine["requests_per_second"] / theirs["requests_per_second"],
                }
            )
            for label, figures in pair.items():
                rate, generated = figures["requests_per_second"], figures["tokens"]
                sys.stdout.write(f"{number + 1}  {label:22} {rate:7.2f} requests/s, {generated:.0f} tokens\n")
            sys.stdout.flush()
    ratio = statistics.median(run["ratio"] for run in runs)
    sys.stdout.write(f"vbatch / vLLM, median of {len(runs)}: {ratio:.3f}\n")
    if options.json:
        options.json.write_text(
            json.dumps({"requests": options.requests, "runs": runs, "median_ratio": ratio}, indent=2)
        )


if __name__ == "__main__":
    main()
