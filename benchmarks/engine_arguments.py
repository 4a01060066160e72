"""Measure what an engine's arguments are worth, on the sample model: the ground for a catalogue entry's defaults.

    python benchmarks/engine_arguments.py [--part 0.12] [--json FILE]

Every set of arguments runs the same unrelated requests through `manage.py run_batch`; the first row is vLLM's own
defaults. Needs the sample models (`make samples`).
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import workloads
from run_batch import ours

# Together with what workers/machine.py adds on a processor without bfloat16.
BASE = "--max-model-len 2048"
EAGER = "--enforce-eager"
RESERVED = "VLLM_CPU_NUM_OF_RESERVED_CPU"
# Arguments, and on how many cores the model does not run.
SETS = {
    "compiled": ("", "1"),
    "eager": (EAGER, "1"),
    "eager, all cores": (EAGER, "0"),
    "eager, 16 at once": (f"{EAGER} --max-num-seqs 16", "1"),
    "eager, 32 at once": (f"{EAGER} --max-num-seqs 32", "1"),
    "eager, 512 tokens a step": (f"{EAGER} --max-num-batched-tokens 512", "1"),
}


def main() -> None:
    """Print a row for each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", type=float, default=0.12, help="of the 600 unrelated requests")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rates = {}
    for name, (arguments, reserved) in SETS.items():
        os.environ[RESERVED] = reserved
        with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as folder:
            source = Path(folder) / "in.jsonl"
            source.write_text("\n".join(workloads.unrelated(options.part)) + "\n")
            rates[name] = ours(source, Path(folder), f"{BASE} {arguments}".strip())["requests_per_second"]
        sys.stdout.write(f"{name:28} {rates[name]:8.2f} requests/s\n")
        sys.stdout.flush()
        if options.json:
            options.json.write_text(json.dumps(rates, indent=2) + "\n")


if __name__ == "__main__":
    main()
