"""The rooms import one way, and the pure parts stay pure."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ROOMS = ["vbatch_site", "files", "batches", "workers"]

# Modules that tie the rooms together on purpose: they are run, not imported, by the room they stand in.
JUNCTIONS = {"vbatch_site/urls.py", "vbatch_site/settings.py", "vbatch_site/asgi.py"}

PURE = [
    "files/jsonl.py",
    "batches/states.py",
    "batches/validation.py",
    "batches/planning.py",
    "batches/tokens.py",
    "batches/inspection.py",
    "batches/bodies.py",
    "batches/line_index.py",
    "batches/outcome.py",
    "batches/ordering.py",
    "batches/wire.py",
    "batches/demand.py",
    "batches/progress.py",
    "batches/webhooks/addresses.py",
    "batches/webhooks/client.py",
    "batches/webhooks/payload.py",
    "batches/webhooks/retries.py",
    "batches/webhooks/signing.py",
    "workers/scheduler.py",
    "workers/unreadable.py",
    "workers/feeding.py",
    "workers/canary.py",
    "workers/failures.py",
    "workers/priority.py",
    "workers/admission.py",
    "workers/client.py",
    "workers/connections.py",
    "workers/provenance.py",
    "workers/engine.py",
    "workers/grace.py",
    "workers/gpus.py",
    "workers/machine.py",
    "workers/recipes.py",
    "workers/autoscale.py",
    "workers/launchers/__init__.py",
    "workers/launchers/job.py",
    "workers/launchers/local.py",
    "workers/launchers/slurm.py",
    "vbatch_site/console/charts.py",
    "vbatch_site/console/roles.py",
    "vbatch_site/descriptors.py",
    "vbatch_site/guard.py",
    "vbatch_site/logs.py",
    "vbatch_site/ports.py",
    "vbatch_site/traces.py",
    "vbatch_site/openai/ids.py",
    "vbatch_site/openai/wording.py",
]


def _sources(room: str) -> Iterator[Path]:
    for path in (ROOT / room).rglob("*.py"):
        if "tests" not in path.parts and "migrations" not in path.parts:
            yield path


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_before_it(room: str) -> None:
    later = ROOMS[ROOMS.index(room) + 1 :]
    for path in _sources(room):
        if str(path.relative_to(ROOT)) in JUNCTIONS:
            continue
        crossing = {name for name in _imports(path) if name.split(".")[0] in later}
        assert not crossing, f"{path} imports {crossing}"


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_reaches_no_django(name: str) -> None:
    seen, todo = set(), [ROOT / name]
    while todo:
        path = todo.pop()
        for module in _imports(path):
            assert module.split(".")[0] not in ("django", "django_q", "rest_framework"), f"{path} imports {module}"
            local = ROOT / (module.replace(".", "/") + ".py")
            if local.exists() and local not in seen:
                seen.add(local)
                todo.append(local)


def test_nothing_but_move_assigns_a_batch_status() -> None:
    allowed = {"batches/models.py"}
    for room in ROOMS:
        for path in _sources(room):
            if str(path.relative_to(ROOT)) in allowed:
                continue
            assert not re.search(r"\bupdate\([^)]*\bstatus=|batch\w*\.status\s*=[^=]", path.read_text()), path


def test_no_module_is_longer_than_a_person_reads_in_one_go() -> None:
    long = {
        str(p.relative_to(ROOT)): n
        for room in ROOMS
        for p in _sources(room)
        if (n := len(p.read_text().splitlines())) > 500
    }
    assert not long
