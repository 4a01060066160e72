"""What a test of the life of batches keeps beside the tables, and how it holds them to it.

Which answer of which line was accepted is all that there is to know: the rows agree with it at any time, and at the end
the files do.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.db import connection
from hypothesis.stateful import RuleBasedStateMachine, invariant

from batches.leases import Lease
from batches.models import Batch, BatchEvent, ResultIndex, Shard
from batches.outcome import Outcome
from batches.planning import unpack
from batches.states import ACTIVE, SOURCES, TERMINAL, BatchStatus, EventKind, ShardState
from files import storage
from files.models import File
from vbatch_site.models import Project
from workers.commits import Commit, Noted

# Why a line that never ran did not, unless its model could not be loaded; a completed batch was ended by its worker.
LEFT = {
    BatchStatus.CANCELLED: "batch_cancelled",
    BatchStatus.EXPIRED: "batch_expired",
    BatchStatus.COMPLETED: "engine_unavailable",
}


@dataclass
class Line:
    """One line of an input file; one without a model is bad."""

    custom_id: str
    model: str | None

    def text(self) -> str:
        if self.model is None:
            return json.dumps({"custom_id": self.custom_id, "method": "GET"}) + "\n"
        body = {"model": self.model, "messages": [{"role": "user", "content": self.custom_id}]}
        line = {"custom_id": self.custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line) + "\n"


@dataclass
class Known:
    """What the model knows of one batch."""

    id: str
    lines: list[Line]
    earlier: "Known | None" = None
    chosen: list[str] | None = None
    answers: dict[int, tuple[str, bool]] = field(
        default_factory=dict
    )  # line -> what was accepted, and whether it is good
    settled: set[int] = field(default_factory=set)  # lines that never run here
    given_up: set[int] = field(default_factory=set)  # lines whose model could not be loaded
    opened: bool = False
    ended: bool = False

    @property
    def failures(self) -> list[int]:
        """The lines that failed, here or in the batch that they were taken over from; not those that can't run."""
        return [n for n, (_, good) in self.answers.items() if not good and self.lines[n - 1].model is not None]

    @property
    def can_be_retried(self) -> bool:
        """Whether there is something to run again, as far as it is known."""
        return self.opened and bool(self.failures or (self.ended and len(self.answers) < len(self.lines)))


@dataclass(eq=False)
class Worker:
    """A lease in somebody's hands, and what is left to do under it."""

    lease: Lease
    todo: list[int]
    released: bool = False
    unsure: "tuple[Commit, list[Outcome]] | None" = None  # a commit whose answer was lost


class Books(RuleBasedStateMachine):
    """What is known of all batches, and held against the tables after each step; what happens is for others to say."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Known] = {}
        self.workers: list[Worker] = []
        self.last: dict[int, Worker] = {}  # shard -> who claimed it last
        self.tokens = 0
        self.elsewhere: psycopg.Connection[Any] | None = None  # a process that is stuck with a batch in its hands
        self.project = Project.default()
        self.files_before = stored()

    # What holds after each step.

    @invariant()
    def rows_agree(self) -> None:
        """Hold the tables against the model."""
        batches = {batch.pk: batch for batch in Batch.objects.all()}
        assert batches.keys() == self.known.keys()
        events: dict[str, list[str]] = {pk: [] for pk in batches}
        for pk, status in (
            BatchEvent.objects.filter(kind=EventKind.STATUS).order_by("id").values_list("batch_id", "status")
        ):
            events[pk].append(status)
        rows = self._rows()
        shards: dict[str, list[Shard]] = {pk: [] for pk in batches}
        for shard in Shard.objects.all():
            shards[shard.batch_id].append(shard)
        for pk, batch in batches.items():
            known = self.known[pk]
            self._check_events(batch, events[pk])
            if batch.in_progress_at and not known.opened:
                self._open(known, rows.get(pk, {}))
            if known.opened and batch.status in ACTIVE:
                _check_running(batch, known, rows.get(pk, {}), shards[pk])
            if batch.status in TERMINAL and not known.ended:
                known.ended = True
                _check_files(batch, known)
        self._check_bytes(batches)

    def _check_events(self, batch: Batch, statuses: list[str]) -> None:
        assert statuses[0] == BatchStatus.VALIDATING
        for before, after in zip(statuses, statuses[1:], strict=False):
            assert before in SOURCES[BatchStatus(after)], f"{before} became {after}"
        assert statuses[-1] == batch.status

    def _check_bytes(self, batches: dict[str, Batch]) -> None:
        """Hold every file that is shown, or that an active batch reads, to its bytes."""
        needed = {batch.input_file_id for batch in batches.values() if batch.status in ACTIVE}
        for file in File.objects.all():
            if file.deleted_at is None or file.pk in needed:
                assert _path(file.path).stat().st_size == file.bytes

    def _open(self, known: Known, rows: dict[int, tuple[str, bool]]) -> None:
        """Note what a batch that has just opened takes over, and that it is what the earlier one had."""
        known.opened = True
        known.answers = dict(rows)
        known.settled = set(rows)
        bad = {n for n, line in enumerate(known.lines, 1) if line.model is None}
        assert bad <= known.settled
        if known.earlier is None:
            assert known.settled == bad
            return
        for n in known.settled - bad:
            assert known.lines[n - 1].custom_id not in (known.chosen or [])
            if known.earlier.answers.get(n, ("", False))[1]:
                assert rows[n] == known.earlier.answers[n], "a carried answer is another one"
        good = {n for n, (_, good) in known.earlier.answers.items() if good}
        assert {n for n in good if known.lines[n - 1].custom_id not in (known.chosen or [])} <= known.settled

    # What the rules ask of it.

    def _pick(self, pick: int, suits: Callable[[Known], bool] = lambda known: True) -> Known | None:
        found = [known for known in self.known.values() if suits(known)]
        return found[pick % len(found)] if found else None

    def _worker(self, pick: int, *, busy: bool = False) -> Worker | None:
        found = [w for w in self.workers if not w.unsure and not w.released and (w.todo or not busy)]
        return found[pick % len(found)] if found else None

    def _forget_stolen(self) -> None:
        """Note the leases that a worker took which died before it knew."""
        epochs = dict(Shard.objects.values_list("pk", "epoch"))
        for shard_id, worker in list(self.last.items()):
            if epochs.get(shard_id) != worker.lease.epoch:
                del self.last[shard_id]

    def _commit_of(self, worker: Worker, count: int, fates: list[str]) -> tuple[Commit, list[Outcome]]:
        done, worker.todo = worker.todo[:count], worker.todo[count:]
        outcomes = [self._outcome(worker.lease, n, fate) for n, fate in zip(done, fates, strict=False)]
        return Commit([(worker.lease, outcome) for outcome in outcomes], Noted(), ""), outcomes

    def _outcome(self, lease: Lease, number: int, fate: str) -> Outcome:
        self.tokens += 1
        token = f"t{self.tokens}"
        found = Outcome(lease.batch_id, number, f"c{number}", output_tokens=1)
        if fate == "lost":
            return found._replace(error_code="engine_lost", error_message=token)
        status = 200 if fate == "ok" else 500
        return found._replace(status_code=status, request_id=token, body=json.dumps({"id": token}).encode())

    def _note(
        self, worker: Worker, outcomes: list[Outcome], commit: Callable[[], None], *, is_certain: bool = False
    ) -> None:
        """Commit, and hold what was accepted to what may be: all of it or nothing, and nothing without the lease."""
        lease = worker.lease
        held = Shard.objects.filter(pk=lease.shard_id, epoch=lease.epoch, state=ShardState.LEASED).exists()
        before = self._rows().get(lease.batch_id, {})
        commit()
        after = self._rows().get(lease.batch_id, {})
        new = {n: row for n, row in after.items() if before.get(n) != row}
        known = self.known[lease.batch_id]
        assert new or not (held and is_certain), "a commit under a lease was dropped"
        if new:
            assert held, "a commit without a lease was accepted"
            assert self.last.get(lease.shard_id) is worker, "a lost lease wrote results"
            assert new == {outcome.line: _token(outcome) for outcome in outcomes}
            known.answers |= new

    def _rows(self) -> dict[str, dict[int, tuple[str, bool]]]:
        found: dict[str, dict[int, tuple[str, bool]]] = {}
        with connection.cursor() as cursor:
            cursor.execute("SELECT batch_id, line, status_code, body, error_code, error_message FROM batches_result")
            for batch_id, line, status, body, code, message in cursor.fetchall():
                token = message if code else json.loads(bytes(body))["id"]
                found.setdefault(batch_id, {})[line] = (token, status == 200 and not code)
        return found


def _token(outcome: Outcome) -> tuple[str, bool]:
    return (outcome.error_message or outcome.request_id, outcome.succeeded)


def _check_running(batch: Batch, known: Known, rows: dict[int, tuple[str, bool]], shards: list[Shard]) -> None:
    """Hold an open batch's rows, counts and plan together."""
    assert rows == known.answers
    good = sum(good for _, good in rows.values())
    assert (batch.completed, batch.failed) == (good, len(rows) - good)
    assert batch.total == len(known.lines)
    planned = [(line.number, shard) for shard in shards for line in unpack(shard.lines)]
    assert sorted(number for number, _ in planned) == list(range(1, len(known.lines) + 1))
    for shard in shards:
        mine = [number for number, of in planned if of is shard]
        finished = sum(number in rows for number in mine)
        assert (shard.count, shard.done) == (len(mine), finished)
        assert shard.state != ShardState.DONE or finished == len(mine)
        assert shard.state in (ShardState.DONE, ShardState.CLOSED) or finished < len(mine), "a finished shard is open"


def _check_files(batch: Batch, known: Known) -> None:
    """Hold the files of an ended batch to what was accepted: each line once, in the right file, as it was answered."""
    if not known.opened:
        assert batch.output_file_id is None
        assert batch.error_file_id is None
        return
    output, errors = (_read(file_id) for file_id in (batch.output_file_id, batch.error_file_id))
    ids = [line["custom_id"] for line in (*output, *errors)]
    assert sorted(ids) == sorted(line.custom_id for line in known.lines), "a line is lost or doubled"
    by_id = {line.custom_id: number for number, line in enumerate(known.lines, 1)}
    left = set(by_id.values()) - known.answers.keys()
    for good, lines in ((True, output), (False, errors)):
        for line in lines:
            number = by_id[line["custom_id"]]
            if number in known.answers:
                found = line["response"]["body"]["id"] if line["response"] else line["error"]["message"]
                assert (found, good) == known.answers[number]
            else:
                code = "model_load_failed" if number in known.given_up else LEFT[BatchStatus(batch.status)]
                assert line["error"]["code"] == code
    failed = sum(not good for _, good in known.answers.values())
    assert batch.completed == len(output)
    assert known.given_up <= left
    others = left - known.given_up
    is_aborted = batch.abort_code == LEFT[BatchStatus.COMPLETED]
    assert batch.failed == failed + len(known.given_up) + (len(others) if is_aborted else 0)
    assert others or batch.status != BatchStatus.EXPIRED
    assert batch.status != BatchStatus.COMPLETED or is_aborted or not others
    assert bool(batch.abort_code) == bool(known.given_up or is_aborted)
    assert ResultIndex.objects.filter(pk=batch.pk).exists()


def _read(file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    file = File.objects.get(pk=file_id)
    assert file.deleted_at is None
    with storage.opened(file.path) as stream:
        return [json.loads(line) for line in stream]


def _path(name: str) -> Path:
    return Path(settings.VBATCH_HOME) / "files" / name


def stored() -> set[str]:
    folder = _path("")
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()
