"""One strike from beginning to end: send batches, wait for the moment, break things, wait, and judge."""

import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any
from uuid import uuid4

import psutil

from vbatch_site.tests.chaos import faults, judge, schedule
from vbatch_site.tests.chaos.judge import Verdict
from vbatch_site.tests.chaos.schedule import Strike
from vbatch_site.tests.chaos.tree import Tree
from vbatch_site.tests.servers import TERMINAL, chat_line, wait_until

LINES = 900
STEERED_LINES = 300
PAD = 2000  # bytes added to each line, so that files take a moment to write
RECOVER_SECONDS = 90.0  # the longest that is waited for: a report that says 80 s says more than one that says no
END_SECONDS = 120.0
ENDS = {"cancelled": ("cancelled", "completed"), "expired": ("expired", "completed")}


@dataclass
class Sent:
    """A batch and what it was asked."""

    batch_id: str
    asked: dict[str, str]
    steering: str = ""


@dataclass
class Outcome:
    """What came of a strike."""

    strike: Strike
    seconds: dict[str, float] = field(default_factory=dict)  # to recover, by fault
    verdict: Verdict = field(default_factory=Verdict)
    repeated: int = 0  # requests that an engine got more than once
    exposed: int = 0  # requests sent and not yet committed when the faults fell: what may run twice

    @property
    def complaints(self) -> list[str]:
        """Everything that should not be."""
        return self.verdict.complaints


def fight(tree: Tree, strike: Strike, name: str = "", lines: int = LINES) -> Outcome:
    """Carry out one strike and return what came of it; the name makes its prompts and its chances its own."""
    name = name or uuid4().hex[:6]
    random, outcome = Random(name), Outcome(strike)
    log = tree.home / "requests.log"
    log_start = log.stat().st_size if log.exists() else 0
    with ThreadPoolExecutor(2) as pool:
        sending = pool.submit(_send, tree, f"{name}a", lines)
        sent = [sending.result()] if strike.moment != schedule.UPLOADING else []
        if strike.steering:
            sent.append(_send(tree, f"{name}b", STEERED_LINES, strike.steering))
        if sent:
            _await_moment(tree, sent[0], strike.moment)
        time.sleep(strike.delay)
        steering = pool.submit(_steer, tree, sent[-1], random.uniform(0, 1)) if strike.steering else None
        # In this order: what is written meanwhile is taken for exposed, and not the other way round.
        written = _written(tree, sent)
        outcome.exposed = max(0, judge.seen(tree, log_start).total() - written)
        _break(tree, strike, random, outcome)
        if not sent:
            sent.append(sending.result(END_SECONDS))
        _result(steering)
    for batch in sent:
        _await_end(tree, batch, outcome)
    if not outcome.complaints:
        for batch in sent:
            may_end = ENDS.get(batch.steering, ("completed",))
            outcome.verdict.add(judge.batch(tree, batch.batch_id, batch.asked, may_end))
    prompts = {prompt for batch in sent for prompt in batch.asked.values()}
    outcome.repeated = sum(n - 1 for prompt, n in judge.seen(tree, log_start).items() if prompt in prompts)
    outcome.complaints.extend(judge.rows(tree))
    outcome.complaints.extend(judge.processes(tree))
    _tidy(tree, sent)
    return outcome


def _result(future: "Future[None] | None") -> None:
    if future is not None:
        future.result(END_SECONDS)


def _send(tree: Tree, name: str, count: int, steering: str = "") -> Sent:
    """Upload and create as a client with retries does."""
    asked = {f"line-{i}": f"{name}-{i}" for i in range(count)}
    content = "".join(chat_line(custom_id, text, user="x" * PAD) for custom_id, text in asked.items())
    key = name + uuid4().hex
    edge = uuid4().hex
    head = f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{edge}\r\n'
    head += 'Content-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
    body = f"{head}{content}\r\n--{edge}--\r\n".encode()
    kind = {"Idempotency-Key": f"{key}-file", "Content-Type": f"multipart/form-data; boundary={edge}"}
    file = tree.insist(lambda: tree.request("POST", "/v1/files", body, headers=kind))
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = tree.insist(lambda: tree.request("POST", "/v1/batches", wanted, headers={"Idempotency-Key": key}))
    return Sent(str(batch["id"]), asked, steering)


def _written(tree: Tree, sent: list[Sent]) -> int:
    rows = tree.ask("SELECT sum(committed) FROM batches_batch WHERE id = ANY(%s)", [batch.batch_id for batch in sent])
    return int(rows[0][0] or 0) if rows else 0


def _await_moment(tree: Tree, batch: Sent, moment: str) -> None:
    """Return when the batch is where it shall be hit."""

    def status() -> tuple[str, int]:
        rows = tree.ask("SELECT status, committed FROM batches_batch WHERE id = %s", batch.batch_id)
        return rows[0] if rows else ("", 0)

    if moment in (schedule.RUNNING, schedule.FAR):
        wait_until(lambda: status()[0] in TERMINAL or status()[1] > len(batch.asked) // 5, END_SECONDS, 0.02)
    elif moment == schedule.FINALIZING:
        wait_until(lambda: status()[0] in ("finalizing", *TERMINAL), END_SECONDS, 0.002)


def _steer(tree: Tree, batch: Sent, delay: float) -> None:
    """Do what the strike says to the second batch, however often it takes."""
    time.sleep(delay)
    path = f"/v1/batches/{batch.batch_id}"

    def ask(method: str, path: str) -> None:
        def once() -> bool:
            with suppress(OSError):
                # A refusal is an answer: the batch has ended.
                return tree.request(method, path)[0] < 500
            return False

        wait_until(once, END_SECONDS, 0.1)

    if batch.steering == "cancelled":
        ask("POST", f"{path}/cancel")
    elif batch.steering == "paused":
        ask("POST", f"{path}/pause")
        time.sleep(1)
        ask("POST", f"{path}/resume")
    elif batch.steering == "expired":
        statement = "UPDATE batches_batch SET expires_at = now() WHERE id = %s RETURNING id"
        wait_until(lambda: tree.ask(statement, batch.batch_id), END_SECONDS, 0.1)
    elif batch.steering == "input deleted":
        rows = wait_until(
            lambda: tree.ask(
                "SELECT input_file_id FROM batches_batch WHERE id = %s AND status <> 'validating'", batch.batch_id
            ),
            END_SECONDS,
            0.1,
        )
        ask("DELETE", f"/v1/files/{rows[0][0]}")


def _break(tree: Tree, strike: Strike, random: Random, outcome: Outcome) -> None:
    """Inject all faults, heal each when its time is over, and take the time until its effects are over."""
    open_ones: dict[str, tuple[faults.Injury, float]] = {}
    # What takes the database away comes last: others look there for whom to hurt.
    for name in sorted(strike.faults, key=lambda name: "postgres" in name):
        began = time.monotonic()
        open_ones[name] = (faults.ALL[name].inject(tree, random), began)
    healed = {name for name, (injury, _) in open_ones.items() if injury.heals_last}
    deadline = time.monotonic() + RECOVER_SECONDS
    try:
        while open_ones:
            for name, (injury, began) in list(open_ones.items()):
                if name not in healed and time.monotonic() - began >= injury.hold:
                    injury.heal()
                    healed.add(name)
                    if injury.hold:
                        open_ones[name] = (injury, time.monotonic())
            # A part that is frozen leaves a question without an answer, and nothing would be healed meanwhile.
            if healed.issuperset(open_ones):
                for name, (injury, began) in list(open_ones.items()):
                    if _is_over(injury):
                        outcome.seconds[name] = time.monotonic() - began
                        injury.heal()
                        del open_ones[name]
            if time.monotonic() > deadline:
                outcome.complaints.extend([f"no recovery from: {name}" for name in open_ones])
                return
            time.sleep(0.02)
    finally:
        for injury, _ in open_ones.values():
            injury.heal()


def _is_over(injury: faults.Injury) -> bool:
    # A process that was just looked at may have ended.
    with suppress(OSError, LookupError, psutil.Error):
        return injury.recovered()
    return False


def _await_end(tree: Tree, batch: Sent, outcome: Outcome) -> None:
    def ended() -> Any:
        rows = tree.ask("SELECT status FROM batches_batch WHERE id = %s", batch.batch_id)
        return rows and rows[0][0] in TERMINAL and tree.answers()

    try:
        wait_until(ended, END_SECONDS, 0.05)
    except AssertionError:
        rows = tree.ask("SELECT status, committed, total FROM batches_batch WHERE id = %s", batch.batch_id)
        outcome.complaints.append(f"{batch.batch_id} does not end: {rows}")


def _tidy(tree: Tree, sent: list[Sent]) -> None:
    """Delete the strike's files, as a client does, so that the disk holds many strikes."""
    if not os.path.ismount(tree.disk):
        return
    for batch in sent:
        row = tree.batch(batch.batch_id)
        for name in ("input_file_id", "output_file_id", "error_file_id"):
            if row.get(name):
                tree.request("DELETE", f"/v1/files/{row[name]}")
