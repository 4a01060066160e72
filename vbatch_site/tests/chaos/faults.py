"""The faults by name: how each is done, how it ends, and when its effects are over."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any

import psutil

from vbatch_site.tests.chaos.relay import CUT, OPEN, STALLED
from vbatch_site.tests.chaos.tree import Tree
from vbatch_site.tests.servers import is_alive, wait_until

FROZEN_SECONDS = 2.0
# Two attempts of a line fall into it, the third does not.
BAD_ENGINE_SECONDS = 0.8
CLOCK_SECONDS = 3600  # that a clock is set: more than all that is timed by one, but for windows and lives of files
END_SECONDS = 30  # for what hangs below a killed process to end


def _nothing() -> None:
    return None


@dataclass
class Injury:
    """What a fault did: when it is over, and how it ends where it does not by itself."""

    recovered: Callable[[], bool]
    heal: Callable[[], Any] = _nothing
    hold: float = 0.0  # seconds until it is healed; the time to recover counts from there
    heals_last: bool = False  # it stays until everything has recovered in spite of it


@dataclass(frozen=True, slots=True)
class Fault:
    """One way to break the tree."""

    name: str
    how: str
    inject: Callable[[Tree, Random], Injury] = field(repr=False)


ALL: dict[str, Fault] = {}


def _fault(name: str, how: str) -> Callable[[Callable[[Tree, Random], Injury]], Callable[[Tree, Random], Injury]]:
    def note(inject: Callable[[Tree, Random], Injury]) -> Callable[[Tree, Random], Injury]:
        ALL[name] = Fault(name, how, inject)
        return inject

    return note


def _kill(processes: Iterable[psutil.Process]) -> None:
    """Kill -9 all of them; frozen first, so that none sees another one's end."""
    found = list(processes)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _continue(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.resume()


def _freeze(processes: list[psutil.Process]) -> Callable[[], None]:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    return lambda: _continue(processes)


def _open_batches(tree: Tree) -> int | None:
    rows = tree.ask("SELECT count(*) FROM batches_batch WHERE status IN ('validating', 'in_progress')")
    return int(rows[0][0]) if rows else None


def _progress(tree: Tree) -> Callable[[], bool]:
    """Return the question whether results are written again."""
    before = tree.committed()
    return lambda: tree.committed() > before or _open_batches(tree) == 0


def _no_end_outstanding(tree: Tree) -> Callable[[], bool]:
    """Return the question whether all batches that wait for their end have it, and the API answers."""

    def is_over() -> bool:
        rows = tree.ask("SELECT count(*) FROM batches_batch WHERE status IN ('finalizing', 'cancelling', 'validating')")
        return bool(rows) and rows[0][0] == 0 and tree.answers()

    return is_over


def _taken_over(tree: Tree, *holders: str) -> Callable[[], bool]:
    """Return the question whether nothing is leased to these workers any more, and results are written."""
    progress = _progress(tree)

    def is_over() -> bool:
        left = tree.ask("SELECT count(*) FROM batches_shard WHERE state = 'leased' AND holder = ANY(%s)", list(holders))
        return bool(left) and left[0][0] == 0 and progress()

    return is_over


@_fault("worker killed", "kill -9 of the gpu worker that holds the most lines")
def _worker_killed(tree: Tree, random: Random) -> Injury:
    name, process = tree.busy_worker()
    over = _taken_over(tree, name)
    process.kill()
    return Injury(over)


@_fault("workers killed", "kill -9 of all gpu workers")
def _workers_killed(tree: Tree, random: Random) -> Injury:
    holders = tree.holders()
    over = _taken_over(tree, *holders)
    _kill(holders.values())
    return Injury(over)


@_fault("worker frozen", "SIGSTOP of a gpu worker; SIGCONT when another has its lines")
def _worker_frozen(tree: Tree, random: Random) -> Injury:
    name, process = tree.busy_worker()
    over = _taken_over(tree, name)
    return Injury(over, _freeze([process]), heals_last=True)


@_fault("gpu cluster killed", "kill -9 of the gpu cluster: program, sentinel, workers")
def _gpu_cluster_killed(tree: Tree, random: Random) -> Injury:
    over = _taken_over(tree, *tree.holders())
    _kill(tree.cluster("gpu"))
    return Injury(over)


@_fault("engine killed", "kill -9 of an engine")
def _engine_killed(tree: Tree, random: Random) -> Injury:
    count, progress = len(tree.engines()), _progress(tree)
    _kill(random.sample(tree.engines(), 1))
    return Injury(lambda: progress() and (len(tree.engines()) >= count or _open_batches(tree) == 0))


@_fault("engine frozen", f"SIGSTOP of all engines for {FROZEN_SECONDS:g} s")
def _engine_frozen(tree: Tree, random: Random) -> Injury:
    heal = _freeze(tree.engines())
    return Injury(_progress(tree), heal, FROZEN_SECONDS)


def _bad(tree: Tree, orders: str, seconds: float = BAD_ENGINE_SECONDS) -> Injury:
    tree.orders.write_text(orders)
    return Injury(_progress(tree), lambda: tree.orders.unlink(missing_ok=True), seconds)


@_fault("engine fails", f"every engine answers 500 to all for {BAD_ENGINE_SECONDS:g} s")
def _engine_fails(tree: Tree, random: Random) -> Injury:
    return _bad(tree, "[[sim:500]]")


@_fault("engine hangs", f"every engine leaves all that it takes in {BAD_ENGINE_SECONDS:g} s without an answer")
def _engine_hangs(tree: Tree, random: Random) -> Injury:
    return _bad(tree, "[[sim:hang]]")


@_fault("engine is slow", "every answer takes two seconds more for three seconds")
def _engine_is_slow(tree: Tree, random: Random) -> Injury:
    return _bad(tree, "[[sim:slow:2]]", 3.0)


@_fault("engine lies", f"every engine answers 200 with a body that is no JSON for {BAD_ENGINE_SECONDS:g} s")
def _engine_lies(tree: Tree, random: Random) -> Injury:
    return _bad(tree, "[[sim:garbage]]")


@_fault("engine stops half-way", f"every answer is cut in its middle for {BAD_ENGINE_SECONDS:g} s")
def _engine_stops_half_way(tree: Tree, random: Random) -> Injury:
    return _bad(tree, "[[sim:truncate]]")


@_fault("engine says 200 to an error", f"every answer is 200 with an error as its body for {BAD_ENGINE_SECONDS:g} s")
def _engine_says_200(tree: Tree, random: Random) -> Injury:
    return _bad(tree, "[[sim:200error]]")


@_fault("engine talks nonsense", f"every answer is 200 with a byte that is no UTF-8 for {BAD_ENGINE_SECONDS:g} s")
def _engine_talks_nonsense(tree: Tree, random: Random) -> Injury:
    return _bad(tree, "[[sim:bytes]]")


@_fault("default worker killed", "kill -9 of all workers of the default cluster")
def _default_worker_killed(tree: Tree, random: Random) -> Injury:
    _kill(tree.cluster("default")[2:])
    return Injury(_no_end_outstanding(tree))


@_fault("default cluster killed", "kill -9 of the default cluster: program, sentinel, workers")
def _default_cluster_killed(tree: Tree, random: Random) -> Injury:
    _kill(tree.cluster("default"))
    return Injury(lambda: len(tree.cluster("default")) > 4 and _no_end_outstanding(tree)())


@_fault("default cluster frozen", f"SIGSTOP of the default cluster for {FROZEN_SECONDS:g} s")
def _default_cluster_frozen(tree: Tree, random: Random) -> Injury:
    heal = _freeze(tree.cluster("default"))
    return Injury(_no_end_outstanding(tree), heal, FROZEN_SECONDS)


@_fault("web killed", "kill -9 of the web process")
def _web_killed(tree: Tree, random: Random) -> Injury:
    tree.web().kill()
    return Injury(tree.answers)


@_fault("web frozen", f"SIGSTOP of the web process for {FROZEN_SECONDS:g} s")
def _web_frozen(tree: Tree, random: Random) -> Injury:
    return Injury(tree.answers, _freeze([tree.web()]), FROZEN_SECONDS)


@_fault("postgres killed", "kill -9 of the embedded Postgres")
def _postgres_killed(tree: Tree, random: Random) -> Injury:
    over, settled = _progress(tree), _no_end_outstanding(tree)
    tree.postmaster().kill()
    return Injury(lambda: tree.answers() and (over() or settled()))


@_fault("postgres frozen", f"SIGSTOP of Postgres and its children for {FROZEN_SECONDS:g} s")
def _postgres_frozen(tree: Tree, random: Random) -> Injury:
    over, server = _progress(tree), tree.postmaster()
    heal = _freeze([server, *server.children(recursive=True)])
    return Injury(lambda: over() and tree.answers(), heal, FROZEN_SECONDS)


@_fault("connections ended", "pg_terminate_backend of every connection, three times")
def _connections_ended(tree: Tree, random: Random) -> Injury:
    over, settled = _progress(tree), _no_end_outstanding(tree)
    for _ in range(3):
        tree.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
    return Injury(lambda: tree.answers() and (over() or settled()))


@_fault("guard killed", "kill -9 of the guard of the gpu cluster: all below it must end")
def _guard_killed(tree: Tree, random: Random) -> Injury:
    guard = next(guard for guard in tree.guards() if guard.environ().get("Q_CLUSTER_NAME") == "gpu")
    below = guard.children(recursive=True)
    over = _taken_over(tree, *tree.holders())
    guard.kill()
    return Injury(lambda: not any(is_alive(p) for p in below) and over())


@_fault("tree killed", "kill -9 of every process, half of the times Postgres too, and a new start")
def _tree_killed(tree: Tree, random: Random) -> Injury:
    over, settled = _progress(tree), _no_end_outstanding(tree)
    tree.kill_tree()
    if random.random() < 0.5:
        _kill([tree.postmaster()])
    tree.start()
    return Injury(lambda: tree.answers() and (over() or settled()))


@_fault("root killed", "kill -9 of `manage.py serve` alone: all else ends by itself; kill -9 of Postgres, a new start")
def _root_killed(tree: Tree, random: Random) -> Injury:
    over, settled = _progress(tree), _no_end_outstanding(tree)
    root, *below = tree.tree()
    root.kill()
    wait_until(lambda: not any(is_alive(process) for process in (root, *below)), END_SECONDS)
    assert not tree.strays()
    _kill([tree.postmaster()])
    tree.start()
    return Injury(lambda: tree.answers() and (over() or settled()))


@_fault("tree stopped", "SIGTERM, and a new start")
def _tree_stopped(tree: Tree, random: Random) -> Injury:
    tree.stop()
    tree.start()
    return Injury(_progress(tree))


@_fault("clock set ahead", "the clock of every process, Postgres too, jumps an hour ahead and stays there")
def _clock_set_ahead(tree: Tree, random: Random) -> Injury:
    over = _progress(tree)
    tree.set_clock(CLOCK_SECONDS)
    return Injury(over)


@_fault("clock set back", "the clock of every process, Postgres too, jumps an hour back and stays there")
def _clock_set_back(tree: Tree, random: Random) -> Injury:
    over = _progress(tree)
    tree.set_clock(-CLOCK_SECONDS)
    return Injury(over)


@_fault("clock wrong", f"the clock of every process but Postgres is an hour off, for {FROZEN_SECONDS:g} s and more")
def _clock_wrong(tree: Tree, random: Random) -> Injury:
    seconds = random.choice((CLOCK_SECONDS, -CLOCK_SECONDS))
    tree.set_clock(seconds, postgres=False)
    end, later = time.monotonic() + FROZEN_SECONDS, list[Callable[[], bool]]()

    def goes_on() -> bool:
        if time.monotonic() < end:
            return False
        if not later:
            later.append(_progress(tree))
        return later[0]()

    return Injury(goes_on, lambda: tree.set_clock(-seconds, postgres=False), heals_last=True)


def _network(tree: Tree, state: str) -> Injury:
    relay, before = tree.relay, list[int]()
    assert relay is not None
    relay.set(state)

    def heal() -> None:
        before.append(tree.committed())
        relay.set(OPEN)

    return Injury(lambda: tree.committed() > before[0] or _open_batches(tree) == 0, heal, FROZEN_SECONDS)


@_fault("network cut", f"connections to the engine reset, new ones too, for {FROZEN_SECONDS:g} s")
def _network_cut(tree: Tree, random: Random) -> Injury:
    return _network(tree, CUT)


@_fault("network stalled", f"not a byte passes between worker and engine for {FROZEN_SECONDS:g} s")
def _network_stalled(tree: Tree, random: Random) -> Injury:
    return _network(tree, STALLED)


@_fault("outside postgres killed", f"kill -9 of a Postgres that is no part of the tree, away for {FROZEN_SECONDS:g} s")
def _outside_postgres_killed(tree: Tree, random: Random) -> Injury:
    over = _progress(tree)
    server = tree.postmaster()
    _kill([server, *server.children(recursive=True)])
    return Injury(lambda: over() and tree.answers(), tree.start_outside, FROZEN_SECONDS)


@_fault("disk full", f"no byte free for files for {FROZEN_SECONDS:g} s")
def _disk_full(tree: Tree, random: Random) -> Injury:
    tree.fill_disk()
    return Injury(_no_end_outstanding(tree), tree.free_disk, FROZEN_SECONDS)


@_fault("disk read-only", f"the files' disk is read-only for {FROZEN_SECONDS:g} s")
def _disk_read_only(tree: Tree, random: Random) -> Injury:
    tree.protect_disk(read_only=True)
    return Injury(_no_end_outstanding(tree), lambda: tree.protect_disk(read_only=False), FROZEN_SECONDS)
