"""What must hold when all has ended, whatever was broken: read from the API, the rows, the files and the processes."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from batches.line_index import batch_of, name_for
from batches.states import SOURCES, TERMINAL, BatchStatus
from vbatch_site.tests.chaos.tree import Tree
from vbatch_site.tests.servers import wait_until

# Of lines that never ran, by how their batch ended.
LEFT = {"cancelled": "batch_cancelled", "expired": "batch_expired"}


@dataclass
class Verdict:
    """What was found; complaints are what must never be."""

    lines: int = 0
    lost: int = 0
    doubled: int = 0
    complaints: list[str] = field(default_factory=list)

    def add(self, other: "Verdict") -> None:
        """Add what was found elsewhere."""
        self.lines += other.lines
        self.lost += other.lost
        self.doubled += other.doubled
        self.complaints += other.complaints


def batch(tree: Tree, batch_id: str, asked: Mapping[str, str], may_end: tuple[str, ...]) -> Verdict:
    """Audit one ended batch: `asked` has the prompt of each custom_id."""
    found = Verdict(lines=len(asked))
    row = tree.batch(batch_id)
    output, errors = tree.lines(row)
    if row["status"] == BatchStatus.EXPIRED and row["in_progress_at"] is None:
        # Its time was over before its file was read: there are no lines that could be in a file.
        asked = {}
        found.lines = 0
    seen = Counter(line["custom_id"] for line in output + errors)
    found.lost = len(asked.keys() - seen.keys())
    found.doubled = sum(seen.values()) - len(seen)

    def check(holds: bool, complaint: str) -> None:
        if not holds:
            found.complaints.append(f"{batch_id}: {complaint}")

    check(not found.lost, f"{found.lost} lines are in no file")
    check(not found.doubled, f"{found.doubled} lines are there twice")
    check(not seen.keys() - asked.keys(), "lines that nobody asked for")
    check(row["status"] in may_end, f"it is {row['status']}, not {' or '.join(may_end)}")
    wrong = [
        line["custom_id"]
        for line in output
        if line["response"]["body"]["choices"][0]["message"]["content"] != f"echo: {asked.get(line['custom_id'])}"
    ]
    check(not wrong, f"answers of other lines: {wrong[:3]}")
    codes = Counter(str((line["error"] or {}).get("code")) for line in errors)
    left = codes.pop(LEFT.get(row["status"], ""), 0)
    check(not codes, f"lines with errors: {dict(codes)}")
    counts = {"total": len(asked), "completed": len(output), "failed": len(errors) - left}
    check(row["request_counts"] == counts, f"counts {row['request_counts']}, files {counts}")
    for name, key in (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens")):
        total = sum(line["response"]["body"]["usage"][key] for line in output)
        check(row["usage"][name] == total, f"usage {name} {row['usage'][name]}, files {total}")
    for complaint in _events(tree, batch_id):
        check(False, complaint)
    return found


def _events(tree: Tree, batch_id: str) -> list[str]:
    """Return what is wrong with the journal: every step must be one that the machine of states has."""
    rows = tree.query(
        "SELECT status, at FROM batches_batchevent WHERE batch_id = %s AND kind = 'status' ORDER BY id", batch_id
    )
    states = [BatchStatus(status) for status, _ in rows]
    wrong = []
    if not states or states[0] != BatchStatus.VALIDATING or states[-1] not in TERMINAL:
        wrong.append(f"the journal is {states}")
    wrong += [
        f"{before} became {after}"
        for before, after in zip(states, states[1:], strict=False)
        if before not in SOURCES[after]
    ]
    return wrong


def rows(tree: Tree, seconds: float = 90) -> list[str]:
    """Return what is left in the database that should not be, after a while to clear it away."""
    questions = {
        "leases": "SELECT count(*) FROM batches_shard WHERE state = 'leased'",
        "shards of ended batches": "SELECT count(*) FROM batches_shard",
        "results of ended batches": "SELECT count(*) FROM batches_result",
        "batches that do not end": "SELECT count(*) FROM batches_batch WHERE purged_at IS NULL AND status <> 'failed'",
        "engines of dead workers": "SELECT count(*) FROM workers_service s JOIN workers_worker w ON w.id = s.worker_id"
        " WHERE w.stopped_at IS NOT NULL AND s.state IN ('starting', 'running')",
    }
    left: dict[str, int] = {}

    def is_clear() -> bool:
        left.clear()
        for what, statement in questions.items():
            count = tree.ask(statement)
            if not count or count[0][0]:
                left[what] = count[0][0] if count else -1
        return not left

    with suppress(AssertionError):
        wait_until(is_clear, seconds, 0.1)
    return [f"{count} {what}" for what, count in left.items()]


def processes(tree: Tree, seconds: float = 40) -> list[str]:
    """Return processes that nobody looks after, after a while to end."""
    with suppress(AssertionError):
        wait_until(lambda: not tree.strays(), seconds, 0.2)
    return [f"stray process {stray}" for stray in tree.strays()]


def storage(tree: Tree, seconds: float = 30) -> list[str]:
    """Return bytes without a row and rows without bytes, once the sweep has made the day's round."""
    wrong: list[str] = []

    def is_clear() -> bool:
        # What the server itself removes at this moment is half gone when it is looked at.
        with suppress(FileNotFoundError):
            wrong[:] = _left_in_storage(tree)
            return not wrong
        return False

    with suppress(AssertionError):
        wait_until(is_clear, seconds, 0.5)
    return wrong


def _left_in_storage(tree: Tree) -> list[str]:
    tree.free_disk()
    tree.execute("UPDATE files_file SET deleted_at = now() WHERE deleted_at IS NOT NULL")
    tree.execute("UPDATE files_uploadpart SET created_at = created_at - interval '1 day'")
    drafts = tree.home / "tmp"
    long_ago = tree.time() - 2 * 24 * 3600
    for path in drafts.iterdir():
        os.utime(path, (long_ago, long_ago))
    tree.manage("shell", "-v0", "-c", "from batches.sweep import sweep; sweep()")
    stored = tree.home / "files"
    found = {str(path.relative_to(stored)): path.stat().st_size for path in stored.rglob("*") if path.is_file()}
    known = dict(tree.query("SELECT path, bytes FROM files_file"))
    for path in list(known):
        if batch_id := batch_of(path):
            found.pop(name_for(batch_id), None)
    wrong = [f"no row has the bytes of {path}" for path in sorted(found.keys() - known.keys())]
    wrong += [f"the bytes of {path} are gone" for path in sorted(known.keys() - found.keys())]
    wrong += [f"{path} has {found[path]} bytes, not {known[path]}" for path in known if found.get(path) != known[path]]
    wrong += [f"{path} is left in the folder for drafts" for path in drafts.iterdir()]
    return wrong


def seen(tree: Tree, since: int) -> Counter[str]:
    """Return how often engines took each prompt, from a place in their log on."""
    path = tree.home / "requests.log"
    if not path.exists():
        return Counter()
    with path.open("rb") as log:
        log.seek(since)
        # A kill may cut the last line.
        lines = log.read().split(b"\n")[:-1]
    return Counter(str(json.loads(line)) for line in lines)
