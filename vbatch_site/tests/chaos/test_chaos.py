"""What is promised when parts of a running server die, hang, lie or run full: one tree, broken again and again."""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from vbatch_site.tests.chaos import judge
from vbatch_site.tests.chaos.attached import attached
from vbatch_site.tests.chaos.fight import Outcome, fight
from vbatch_site.tests.chaos.relay import CUT, OPEN, STALLED, Relay
from vbatch_site.tests.chaos.schedule import FINALIZING, RUNNING, Strike
from vbatch_site.tests.chaos.tree import Tree
from vbatch_site.tests.contract.forms import multipart, send_form
from vbatch_site.tests.servers import chat_line, is_alive, new_database, wait_until

pytestmark = pytest.mark.slow

LINES = 600  # two seconds of work: enough to be hit in the middle of
TAKEOVER_SECONDS = 15
STOP_SECONDS = 15
CRASHING = 120  # lines in the batch with the one that kills the engine
# What is sent between the count of what is in flight and the kill, in a quarter of a second.
SENT_MEANWHILE = 80


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """A server of this module's own, on which no test can rely to have the same processes as before."""
    tree = Tree(tmp_path_factory.mktemp("chaos") / "home")
    if not tree.mount_disk() and os.environ.get("CI"):
        pytest.fail("mounting a small file system needs root and the right to mount")
    try:
        if not tree.fake_clock() and os.environ.get("CI"):
            pytest.fail("setting the clock of a process tree needs a C compiler")
        tree.copy_tables(new_database())
        with tree:
            yield tree
    finally:
        tree.unmount_disk()


def struck(tree: Tree, moment: str, *names: str, steering: str = "", delay: float = 0.0, lines: int = LINES) -> Outcome:
    """Carry out a strike after which everything must be as promised."""
    outcome = fight(tree, Strike(moment, names, steering, delay), lines=lines)
    assert not outcome.complaints, (outcome, tree.log.read_text()[-6000:])
    assert outcome.verdict.lost == outcome.verdict.doubled == 0
    return outcome


def struck_in_time(tree: Tree, name: str, steering: str = "") -> Outcome:
    """Carry out a strike whose effects must be over in time; the better of two, should the machine be held up."""
    outcome = struck(tree, RUNNING, name, steering=steering)
    if outcome.seconds[name] >= TAKEOVER_SECONDS:
        outcome = struck(tree, RUNNING, name, steering=steering)
    assert outcome.seconds[name] < TAKEOVER_SECONDS
    return outcome


def test_a_killed_gpu_worker_is_replaced_in_time_and_only_what_was_in_flight_runs_twice(tree: Tree) -> None:
    outcome = struck_in_time(tree, "worker killed")
    assert outcome.repeated <= outcome.exposed + SENT_MEANWHILE


def test_a_frozen_gpu_workers_lines_go_to_another_in_time_and_what_it_does_later_counts_for_nothing(tree: Tree) -> None:
    outcome = struck_in_time(tree, "worker frozen")
    assert outcome.repeated <= outcome.exposed + SENT_MEANWHILE


def test_when_a_guard_is_killed_all_that_it_guarded_ends(tree: Tree) -> None:
    struck_in_time(tree, "guard killed", steering="paused")


def test_all_ends_with_the_root_and_goes_on_after_a_new_start_which_says_what_it_set_right(tree: Tree) -> None:
    outcome = struck(tree, RUNNING, "root killed")
    assert outcome.repeated <= outcome.exposed + SENT_MEANWHILE
    assert "repaired: " in tree.log.read_text()


def test_a_killed_postgres_is_started_again_and_no_line_runs_twice_but_those_in_flight(tree: Tree) -> None:
    outcome = struck(tree, RUNNING, "postgres killed")
    assert outcome.repeated <= outcome.exposed + SENT_MEANWHILE


def test_a_killed_engine_is_started_again_and_an_engine_that_fails_for_a_moment_costs_no_line(tree: Tree) -> None:
    struck(tree, RUNNING, "engine killed", "engine fails", steering="input deleted")


def test_the_end_of_a_batch_survives_a_kill_at_any_point(tree: Tree) -> None:
    for fault, delay in (
        ("default worker killed", 0.0),
        ("default worker killed", 0.03),
        ("default cluster killed", 0.06),
    ):
        struck(tree, FINALIZING, fault, delay=delay, lines=LINES // 3)


def test_clocks_that_are_set_or_wrong_cost_no_line_and_hold_up_nothing(tree: Tree) -> None:
    if not tree.has_clock:
        pytest.skip("setting the clock of a process tree needs a C compiler")
    assert _hours_off(tree) == (0, 0)
    struck(tree, RUNNING, "clock set ahead", lines=LINES // 2)
    wait_until(lambda: _hours_off(tree) == (1, 1))
    struck(tree, RUNNING, "clock set back", "clock wrong", steering="cancelled", lines=LINES // 2)
    wait_until(lambda: _hours_off(tree) == (0, 0))


def _hours_off(tree: Tree) -> tuple[int, int]:
    """Return how wrong the clocks of the web process, which notes the date once a second, and of Postgres are."""
    web = parsedate_to_datetime(tree.request("GET", "/health", key=None)[1]["date"]).timestamp()
    postgres = tree.query("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0]
    return round((web - time.time()) / 3600), round((postgres - time.time()) / 3600)


def test_a_full_disk_holds_up_the_end_of_a_batch_refuses_an_upload_and_keeps_nothing_of_it(tree: Tree) -> None:
    if not tree.has_disk:
        pytest.skip("mounting a small file system needs root and the right to mount")
    struck(tree, FINALIZING, "disk full", lines=LINES // 2)
    # Nothing more goes that would make room again.
    wait_until(lambda: not tree.query("SELECT 1 FROM files_file WHERE deleted_at <= now()"))
    known = tree.query("SELECT id FROM files_file")
    tree.fill_disk()
    try:
        for size in (1000, 3 << 20):
            content = chat_line("a", "x" * size)
            status, _, answer = send_form(tree, multipart([("purpose", None, "batch"), ("file", "f", content)]))
            assert status == 507, answer
            assert answer["error"]["code"] == "storage_error"
        assert set(tree.query("SELECT id FROM files_file")) <= set(known)
    finally:
        tree.free_disk()


def test_a_network_that_is_cut_between_worker_and_service_costs_no_line(tmp_path: Path) -> None:
    with attached(tmp_path / "home", new_database()) as (tree, relay):
        for state in (CUT, STALLED):
            assert _interrupted(tree, relay, state) < TAKEOVER_SECONDS


def _interrupted(tree: Tree, relay: Relay, state: str, seconds: float = 1.0) -> float:
    """Interrupt the network in the middle of a batch; return the seconds from its return until results come again."""
    asked = {f"line-{i}": f"{state}-{i}" for i in range(LINES // 3)}
    batch_id = tree.create("".join(chat_line(*pair) for pair in asked.items()))
    wait_until(lambda: tree.committed_of(batch_id) > LINES // 10, step=0.01)
    relay.set(state)
    time.sleep(seconds)
    before = tree.committed_of(batch_id)
    relay.set(OPEN)
    began = time.monotonic()
    # On a machine that is held up it may have been through before the cut.
    wait_until(lambda: tree.committed_of(batch_id) > min(before, len(asked) - 1))
    took = time.monotonic() - began
    tree.wait(batch_id)
    assert not judge.batch(tree, batch_id, asked, ("completed",)).complaints
    return took


def test_a_cancelled_batch_ends_well_while_everything_else_breaks(tree: Tree) -> None:
    struck(tree, RUNNING, "worker killed", "connections ended", "web killed", steering="cancelled")


def test_one_line_that_kills_the_engine_gets_an_error_and_the_rest_goes_on(tree: Tree) -> None:
    before = tree.query("SELECT count(*) FROM workers_service WHERE state = 'failed'")[0][0]
    content = "".join(chat_line(f"line-{i}", "[[sim:crash]]" if i == 60 else "fine") for i in range(CRASHING))
    batch = tree.wait(tree.create(content), 240)
    output, errors = tree.lines(batch)
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [("line-60", "engine_crashed")]
    assert Counter(line["custom_id"] for line in output) == Counter(f"line-{i}" for i in range(CRASHING) if i != 60)
    crashes = tree.query("SELECT count(*) FROM workers_service WHERE state = 'failed'")[0][0] - before
    assert crashes <= 9  # log2(CRASHING) + 2


def test_sigterm_in_a_run_loses_nothing_redoes_nothing_and_leaves_no_process(tree: Tree) -> None:
    batch_id = tree.create("".join(chat_line(f"line-{i}", f"stopped-{i}") for i in range(LINES)))
    wait_until(lambda: tree.batch(batch_id)["request_counts"]["completed"] > LINES // 5)
    processes = tree.tree()
    started = time.monotonic()
    tree.stop()
    assert time.monotonic() - started < STOP_SECONDS
    wait_until(lambda: not any(map(is_alive, processes)), 10)
    tree.start()
    assert tree.wait(batch_id)["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
    assert judge.seen(tree, 0).keys() >= {f"stopped-{i}" for i in range(LINES)}
    assert max(count for text, count in judge.seen(tree, 0).items() if text.startswith("stopped")) == 1


def test_nothing_of_all_this_left_bytes_without_a_row_or_rows_without_bytes(tree: Tree) -> None:
    assert not judge.storage(tree)


def test_a_second_signal_ends_all_at_once(tree: Tree) -> None:
    asked = [f"never-{i}" for i in range(20)]
    tree.create("".join(chat_line(text, f"{text} [[sim:slow:30]]") for text in asked))
    wait_until(lambda: any(text.startswith("never") for text in judge.seen(tree, 0)))
    processes, started = tree.tree(), time.monotonic()
    assert tree.process is not None
    tree.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    tree.process.send_signal(signal.SIGTERM)
    tree.process.wait(STOP_SECONDS)
    assert time.monotonic() - started < 6.5  # and not the seven seconds that lines in the engine get
    wait_until(lambda: not any(map(is_alive, processes)), 10)
