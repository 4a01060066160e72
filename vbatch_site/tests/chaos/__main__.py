"""The long form: strike after strike for as long as one likes; `make chaos MINUTES=10 SEED=7`."""

import argparse
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from vbatch_site import database
from vbatch_site.tests.chaos import judge, report, schedule
from vbatch_site.tests.chaos.attached import attached
from vbatch_site.tests.chaos.fight import fight
from vbatch_site.tests.chaos.tree import Tree

_STORAGE_EVERY = 10  # strikes between two audits of every byte on the disk


def main() -> int:
    """Break things for the given time; return 0 when every promise held."""
    parser = argparse.ArgumentParser(prog="make chaos")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first strike of the seed's row")
    parser.add_argument("--keep", action="store_true", help="leave the page in docs/ as it is")
    options = parser.parse_args()
    # The suite brings its own server; what the shell has set is for others.
    for name in [name for name in os.environ if name.startswith(("VBATCH_", "DATABASE_URL"))]:
        del os.environ[name]
    began, outcomes = time.monotonic(), report.Report()
    number, lines, complaints = options.first, 0, list[str]()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        tree = Tree(Path(folder) / "home")
        if not tree.mount_disk():
            print("No right to mount a small disk here: the faults of the disk are left out.", flush=True)
        if not tree.fake_clock():
            print("No C compiler here: the faults of the clock are left out.", flush=True)
        print(f"Seed {options.seed}, {options.minutes:g} minutes, home {tree.home}", flush=True)
        try:
            with tree, ExitStack() as stack:
                far: Tree | None = None
                while time.monotonic() - began < options.minutes * 60 and not complaints:
                    strike = schedule.strike(options.seed, number)
                    number += 1
                    missing = {"disk": not tree.has_disk, "clock": not tree.has_clock}
                    if any(missing.get(name.split()[0]) for name in strike.faults):
                        continue
                    if strike.moment == schedule.FAR and far is None:
                        outside = Path(folder) / "outside"
                        url = database.start(outside)
                        stack.callback(database.leave, outside)
                        far, _ = stack.enter_context(attached(Path(folder) / "far", url))
                        far.outside = outside
                    struck = far if far and strike.moment == schedule.FAR else tree
                    outcome = fight(struck, strike, f"{options.seed}-{number - 1}")
                    outcomes.add(outcome)
                    lines += outcome.verdict.lines
                    complaints += outcome.complaints
                    if number % _STORAGE_EVERY == 0 and not complaints:
                        complaints += judge.storage(tree)
                    seconds = ", ".join(f"{name} {took:.1f} s" for name, took in outcome.seconds.items())
                    at = time.monotonic() - began
                    print(
                        f"{at:7.1f} s  {number - 1:4d}  {strike}: {seconds}; run again {outcome.repeated}", flush=True
                    )
                trees = [tree, far] if far else [tree]
                if not complaints:
                    complaints += [complaint for each in trees for complaint in judge.storage(each)]
            complaints += [complaint for each in trees for complaint in judge.processes(each)]
            if complaints:
                print("".join(f"  {complaint}\n" for complaint in complaints))
                print(f"Again: make chaos SEED={options.seed} FIRST={max(0, number - 1)}")
                print("".join(each.log.read_text()[-6000:] for each in trees))
        finally:
            tree.unmount_disk()
    table = outcomes.table()
    print(f"\n{table}")
    if not complaints and not options.keep:
        said = (
            f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} processors, seed {options.seed}, "
            f"{(time.monotonic() - began) / 60:.0f} minutes, {number - options.first} strikes, {lines:,} lines."
        )
        report.write("make chaos", table, said)
    print("Something was not as promised." if complaints else "Every promise held.")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
