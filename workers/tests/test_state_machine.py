"""The life of batches in random order: what people, workers, tasks, crashes and the clock may do, at any time.

The machine does one thing after another on the real tables and the real storage, and keeps a small model beside them:
which answer of which line was accepted. After each step the rows agree with it, and at the end the files do.

A crash is a process that ends before its n-th statement: its transaction is undone, its session's locks go, and nobody
cleans up after it. Time passes by moving times in rows.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings as django_settings
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.db.models import F
from django.utils import timezone
from django.utils.module_loading import import_string
from django_q.models import OrmQ
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batches import creation, leases, retrying, steering, sweep
from batches.leases import Lease
from batches.locks import lock_key
from batches.models import Batch, BatchEvent, ResultIndex, Shard, StaleTransition
from batches.outcome import Outcome
from batches.planning import unpack
from batches.states import ACTIVE, SOURCES, TERMINAL, BatchStatus, EventKind, ShardState
from batches.tests.rows import MODEL, new_batch
from files import storage, uploads
from files.models import File
from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError
from workers.commits import Commit, Noted
from workers.models import CHAT_ENDPOINTS, ServedModel

MODELS = ("m0", "m1")
FATES = ("ok", "ok", "500", "lost")  # an answer, an engine's refusal, an engine that died
MOST_BATCHES = 6  # in one run: what interleaves has to meet
NEVER = 1_000_000  # more statements than anything takes

_TABLES = (
    "batches_result",
    "batches_shard",
    "batches_batchevent",
    "batches_sample",
    "batches_resultindex",
    "batches_batch_provenance",
    "batches_webhookdelivery",
    "batches_batch",
    "files_file",
    "django_q_ormq",
)
numbers = st.integers(0, 9999)
DEEP = "deep"  # the profile of conftest.py


class Crash(BaseException):
    """A process ended here."""


@contextmanager
def crashing(before_statement: int) -> Iterator[None]:
    """End a block before its n-th statement, as a kill does: what its session held is given up, and nothing is said."""
    left = before_statement

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crash
        return execute(sql, params, many, context)

    try:
        with connection.execute_wrapper(count):
            yield
    except Crash:
        connection.close()


@dataclass
class _Line:
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
class _Known:
    """What the model knows of one batch."""

    id: str
    lines: list[_Line]
    earlier: "_Known | None" = None
    chosen: list[str] | None = None
    answers: dict[int, tuple[str, bool]] = field(
        default_factory=dict
    )  # line -> what was accepted, and whether it is good
    settled: set[int] = field(default_factory=set)  # lines that never run here
    opened: bool = False
    ended: bool = False

    @property
    def failures(self) -> list[int]:
        """The lines that ran here and failed."""
        return [n for n, (_, good) in self.answers.items() if not good and n not in self.settled]

    @property
    def can_be_retried(self) -> bool:
        """Whether there is something to run again, as far as it is known."""
        return self.opened and bool(self.failures or (self.ended and len(self.answers) < len(self.lines)))


@dataclass(eq=False)
class _Worker:
    """A lease in somebody's hands, and what is left to do under it."""

    lease: Lease
    todo: list[int]
    released: bool = False
    unsure: "tuple[Commit, list[Outcome]] | None" = None  # a commit whose answer was lost


class Machine(RuleBasedStateMachine):
    """Everything that happens to batches, one thing at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, _Known] = {}
        self.workers: list[_Worker] = []
        self.last: dict[int, _Worker] = {}  # shard -> who claimed it last
        self.tokens = 0
        self.elsewhere: psycopg.Connection[Any] | None = None  # a process that is stuck with a batch in its hands
        self.project = Project.default()
        self.files_before = _stored()

    # People.

    @initialize(some=st.lists(st.sampled_from(FATES), min_size=6, max_size=6))
    def begin_in_the_middle(self, some: list[str]) -> None:
        """Start with one batch that two workers are at, and another that waits."""
        for models in ((*MODELS, "m0", "m1", "m0"), ("m0", None, "m1")):
            self._create(models, skip=True)
        for pk in self.known:
            import_string("batches.tasks.validate")(pk)
        self.rows_agree()
        for _ in range(2):
            self.claim(0, None)
        self.commit(0, 2, some)
        self.commit(1, 1, some[2:])

    @rule(
        models=st.lists(st.sampled_from([*MODELS, *MODELS, None]), min_size=1, max_size=5),
        skip=st.booleans(),
        crash_at=st.none() | st.integers(0, 14),
    )
    def create(self, models: list[str | None], skip: bool, crash_at: int | None) -> None:
        if len(self.known) < MOST_BATCHES:
            self._create(models, skip, crash_at)

    @precondition(lambda self: any(known.can_be_retried for known in self.known.values()))
    @rule(pick=numbers, some=st.booleans())
    def retry(self, pick: int, some: bool) -> None:
        """Run lines again: in the batch while it runs, in another when it has ended."""
        known = self._pick(pick, lambda known: known.can_be_retried)
        if known is None:
            return
        failed = known.failures
        chosen = [known.lines[n - 1].custom_id for n in failed[:1]] if some and failed else None
        batch = Batch.objects.get(pk=known.id)
        ended = batch.status in TERMINAL
        if ended and len(self.known) >= MOST_BATCHES:
            return
        try:
            found = retrying.retry(batch, chosen, "a test")
        except StaleTransition:
            assert not ended
            assert batch.status != BatchStatus.IN_PROGRESS
        except ApiError as error:
            code = error.body["error"]["code"]
            assert code in ("nothing_to_retry", "batch_files_gone"), code
            assert code != "nothing_to_retry" or not failed
        else:
            if ended:
                self.known[found.pk] = _Known(found.pk, known.lines, known, chosen)
            else:
                for n in failed[:1] if chosen else failed:
                    del known.answers[n]

    @rule(pick=numbers, how=st.sampled_from(["pause", "resume", "cancel", "prioritize"]))
    def steer(self, pick: int, how: str) -> None:
        known = self._pick(pick)
        if known is None:
            return
        batch = Batch.objects.get(pk=known.id)
        steerable = batch.status in (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)
        try:
            if how == "prioritize":
                steering.prioritize(batch, 7, "a test")
            else:
                getattr(steering, how)(batch, "a test")
        except StaleTransition:
            assert not steerable
        else:
            assert steerable

    @rule(pick=numbers, which=st.sampled_from(["input_file_id", "output_file_id", "error_file_id"]))
    def delete_file(self, pick: int, which: str) -> None:
        if known := self._pick(pick):
            file_id = Batch.objects.values_list(which, flat=True).get(pk=known.id)
            File.objects.filter(pk=file_id, deleted_at=None).update(deleted_at=timezone.now())

    # Workers.

    @rule(pick=numbers, crash_at=st.none() | st.integers(0, 9))
    def claim(self, pick: int, crash_at: int | None) -> None:
        """Take a shard; a worker that dies over it keeps the lease from the others until it runs out."""
        waiting = [w for w in leases.waiting(timezone.now()) if w.lines]
        if not waiting:
            return
        wanted = waiting[pick % len(waiting)]
        if crash_at is not None:
            with crashing(crash_at):
                leases.claim(wanted.batch_id, wanted.model, "a worker that dies")
            self._forget_stolen()
            return
        held = Shard.objects.filter(state=ShardState.LEASED, lease_expires_at__gt=timezone.now())
        live = set(held.values_list("pk", flat=True))
        lease = leases.claim(wanted.batch_id, wanted.model, f"worker {len(self.workers)}")
        assert lease is not None, "work that waits can be had"
        assert lease.shard_id not in live, "leases overlap"
        known = self.known[lease.batch_id]
        todo = [line.number for line in lease.lines]
        assert not set(todo) & known.answers.keys(), "a finished line is given out again"
        self.last[lease.shard_id] = worker = _Worker(lease, todo)
        self.workers.append(worker)

    @precondition(lambda self: self._worker(0, busy=True) is not None)
    @rule(pick=numbers, count=st.integers(1, 6), fates=st.lists(st.sampled_from(FATES), min_size=6, max_size=6))
    def commit(self, pick: int, count: int, fates: list[str]) -> None:
        worker = self._worker(pick, busy=True)
        if worker is not None:
            commit, outcomes = self._commit_of(worker, count, fates)
            self._note(worker, outcomes, commit, is_certain=True)

    @precondition(lambda self: self._worker(0, busy=True) is not None)
    @rule(
        pick=numbers,
        count=st.integers(1, 6),
        fates=st.lists(st.sampled_from(FATES), min_size=6, max_size=6),
        crash_at=st.none() | st.integers(0, 12),
    )
    def commit_with_a_lost_answer(self, pick: int, count: int, fates: list[str], crash_at: int | None) -> None:
        """Lose the connection in mid-commit, or just after it; the worker will try the same once more."""
        worker = self._worker(pick, busy=True)
        if worker is None:
            return
        commit, outcomes = self._commit_of(worker, count, fates)

        def call() -> None:
            with crashing(NEVER if crash_at is None else crash_at):
                commit()

        self._note(worker, outcomes, call)
        worker.unsure = (commit, outcomes)

    @precondition(lambda self: any(worker.unsure for worker in self.workers))
    @rule(pick=numbers)
    def try_again(self, pick: int) -> None:
        unsure = [worker for worker in self.workers if worker.unsure]
        if unsure:
            worker = unsure[pick % len(unsure)]
            assert worker.unsure
            commit, outcomes = worker.unsure
            worker.unsure = None
            self._note(worker, outcomes, commit)

    @precondition(lambda self: self._worker(0) is not None)
    @rule(pick=numbers, crash_at=st.none() | st.integers(0, 5))
    def release(self, pick: int, crash_at: int | None) -> None:
        worker = self._worker(pick)
        if worker is None:
            return
        if crash_at is None:
            leases.release([worker.lease])
            worker.released = True
            shard = Shard.objects.filter(pk=worker.lease.shard_id, epoch=worker.lease.epoch)
            assert not shard.filter(state=ShardState.LEASED).exists()
        else:
            with crashing(crash_at):
                leases.release([worker.lease])
            # A worker that dies over it never comes back.
            self.workers.remove(worker)

    @precondition(lambda self: self._worker(0) is not None)
    @rule(pick=numbers)
    def renew(self, pick: int) -> None:
        worker = self._worker(pick)
        if worker is None:
            return
        kept = leases.renew([worker.lease])
        if kept.wanted | kept.paused:
            assert self.last[worker.lease.shard_id] is worker, "a lost lease was renewed"
            batch = Batch.objects.get(pk=worker.lease.batch_id)
            assert batch.status == BatchStatus.IN_PROGRESS
            assert bool(batch.paused_at) == bool(kept.paused)

    @precondition(lambda self: self._worker(0) is not None)
    @rule(pick=numbers)
    def vanish(self, pick: int) -> None:
        """Kill a worker: nothing is heard of it again."""
        if worker := self._worker(pick):
            self.workers.remove(worker)

    @precondition(lambda self: self._worker(0) is not None)
    @rule(pick=numbers, whole_batch=st.booleans())
    def give_up(self, pick: int, whole_batch: bool) -> None:
        """Find that a model can't be loaded."""
        if worker := self._worker(pick):
            if whole_batch:
                leases.abort(worker.lease.batch_id, "engine_unavailable", "It keeps dying.")
            else:
                leases.abort_model(worker.lease.batch_id, worker.lease.model, "model_load_failed", "No memory.")

    # The clock.

    @precondition(lambda self: self._worker(0) is not None)
    @rule(pick=numbers)
    def leases_run_out(self, pick: int) -> None:
        if worker := self._worker(pick):
            past = timezone.now() - timedelta(seconds=1)
            Shard.objects.filter(pk=worker.lease.shard_id, state=ShardState.LEASED).update(lease_expires_at=past)

    @rule()
    def all_leases_run_out(self) -> None:
        past = timezone.now() - timedelta(seconds=1)
        Shard.objects.filter(state=ShardState.LEASED).update(lease_expires_at=past)

    @rule(pick=numbers)
    def window_passes(self, pick: int) -> None:
        if known := self._pick(pick):
            Batch.objects.filter(pk=known.id).update(expires_at=timezone.now() - timedelta(seconds=1))

    @rule(crash_at=st.none() | st.integers(0, 40))
    def sweep(self, crash_at: int | None) -> None:
        """Let some time pass and repair by the clock."""
        Batch.objects.update(rung_at=F("rung_at") - timedelta(minutes=1))
        with crashing(NEVER if crash_at is None else crash_at):
            sweep.sweep()

    # Tasks.

    @rule(
        pick=numbers,
        how=st.sampled_from(["run", "run", "run", "repeat", "lose"]),
        crash_at=st.none() | st.none() | st.integers(0, 30),
    )
    def answer_doorbell(self, pick: int, how: str, crash_at: int | None) -> None:
        """Let a task run, twice, not at all, or die on its way."""
        rows = list(OrmQ.objects.filter(key="default").order_by("id"))
        if not rows:
            return
        row = rows[pick % len(rows)]
        if how != "repeat":
            OrmQ.objects.filter(pk=row.pk).delete()
        if how == "lose":
            return
        with crashing(NEVER if crash_at is None else crash_at):
            import_string(row.task["func"])(*row.task["args"])

    @precondition(lambda self: self.elsewhere is None)
    @rule(pick=numbers)
    def get_stuck(self, pick: int) -> None:
        """Have a process hang that is about to validate or finalize a batch."""
        if known := self._pick(pick, lambda known: not known.ended):
            parameters = connection.get_connection_params()
            self.elsewhere = psycopg.connect(
                **{
                    key: parameters[key]
                    for key in ("dbname", "user", "host", "port", "password")
                    if parameters.get(key)
                },
                autocommit=True,
            )
            self.elsewhere.execute("SELECT pg_advisory_lock(%s)", [lock_key(known.id)])

    @precondition(lambda self: self.elsewhere is not None)
    @rule()
    def kill_the_stuck(self) -> None:
        if self.elsewhere is not None:
            self.elsewhere.close()
            self.elsewhere = None

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

    def _open(self, known: _Known, rows: dict[int, tuple[str, bool]]) -> None:
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

    def teardown(self) -> None:
        """Let everything come to rest: what is left after any order of events ends by itself."""
        try:
            self.kill_the_stuck()
            if not self.known:
                return
            self.workers.clear()
            for _ in range(8):
                self.all_leases_run_out()
                Batch.objects.filter(status=BatchStatus.IN_PROGRESS).update(paused_at=None)
                self._work_through()
                OrmQ.objects.all().delete()  # every doorbell is lost
                self.sweep(None)
                self._ring_all()
                self.rows_agree()
                if all(known.ended for known in self.known.values()):
                    break
            assert all(known.ended for known in self.known.values()), list(
                Batch.objects.values_list("status", flat=True)
            )
            self.sweep(None)
            self.sweep(None)
            assert not Shard.objects.exists()
            assert not self._rows()
            owned = set(File.objects.values_list("path", flat=True))
            assert not {name for name in _stored() - self.files_before if not name.endswith(".index")} - owned
            for batch in Batch.objects.all():
                assert bool(batch.purged_at)
        finally:
            with connection.cursor() as cursor:
                for table in _TABLES:
                    cursor.execute(f"DELETE FROM {table}")  # noqa: S608 (our own names)

    # Beside the rules.

    def _create(self, models: Sequence[str | None], skip: bool, crash_at: int | None = None) -> None:
        lines = [_Line(f"c{n}", model) for n, model in enumerate(models, 1)]
        content = "".join(line.text() for line in lines).encode()
        with crashing(NEVER if crash_at is None else crash_at):
            file = uploads.create_file(self.project, SimpleUploadedFile("input.jsonl", content), "batch", None)
            body = {
                "input_file_id": file.pk,
                "endpoint": "/v1/chat/completions",
                "completion_window": "24h",
                "allow_mixed_models": True,
                "on_invalid_line": "skip" if skip else "fail",
            }
            creation.create(self.project, body)
        # After a crash too: it was made, whole, or not at all.
        for pk in Batch.objects.exclude(pk__in=self.known).values_list("pk", flat=True):
            self.known[pk] = _Known(pk, lines)

    def _pick(self, pick: int, suits: Callable[[_Known], bool] = lambda known: True) -> _Known | None:
        found = [known for known in self.known.values() if suits(known)]
        return found[pick % len(found)] if found else None

    def _worker(self, pick: int, *, busy: bool = False) -> _Worker | None:
        found = [w for w in self.workers if not w.unsure and not w.released and (w.todo or not busy)]
        return found[pick % len(found)] if found else None

    def _forget_stolen(self) -> None:
        """Note the leases that a worker took which died before it knew."""
        epochs = dict(Shard.objects.values_list("pk", "epoch"))
        for shard_id, worker in list(self.last.items()):
            if epochs.get(shard_id) != worker.lease.epoch:
                del self.last[shard_id]

    def _commit_of(self, worker: _Worker, count: int, fates: list[str]) -> tuple[Commit, list[Outcome]]:
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
        self, worker: _Worker, outcomes: list[Outcome], commit: Callable[[], None], *, is_certain: bool = False
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

    def _ring_all(self) -> None:
        while rows := list(OrmQ.objects.all()):
            for row in rows:
                OrmQ.objects.filter(pk=row.pk).delete()
                if row.key == "default":
                    import_string(row.task["func"])(*row.task["args"])

    def _work_through(self) -> None:
        """Be one good worker who does all that waits."""
        while waiting := [w for w in leases.waiting(timezone.now()) if w.lines]:
            lease = leases.claim(waiting[0].batch_id, waiting[0].model, "the last worker")
            assert lease is not None
            self.last[lease.shard_id] = worker = _Worker(lease, [line.number for line in lease.lines])
            assert worker.todo, "a shard without open lines is open"
            commit, outcomes = self._commit_of(worker, len(worker.todo), ["ok"] * len(worker.todo))
            self._note(worker, outcomes, commit, is_certain=True)


def _token(outcome: Outcome) -> tuple[str, bool]:
    return (outcome.error_message or outcome.request_id, outcome.succeeded)


def _check_running(batch: Batch, known: _Known, rows: dict[int, tuple[str, bool]], shards: list[Shard]) -> None:
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


def _check_files(batch: Batch, known: _Known) -> None:
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
                assert line["error"]["code"] in ("batch_cancelled", "batch_expired", batch.abort_code)
    failed = sum(not good for _, good in known.answers.values())
    assert batch.completed == len(output)
    assert batch.failed == failed + (len(left) if batch.abort_code else 0)
    assert batch.status != BatchStatus.COMPLETED or batch.abort_code or not left
    assert ResultIndex.objects.filter(pk=batch.pk).exists()


def _read(file_id: str | None) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    file = File.objects.get(pk=file_id)
    assert file.deleted_at is None
    with storage.opened(file.path) as stream:
        return [json.loads(line) for line in stream]


def _path(name: str) -> Path:
    return Path(django_settings.VBATCH_HOME) / "files" / name


def _stored() -> set[str]:
    folder = _path("")
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} if folder.exists() else set()


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_every_line_ends_once_in_any_order_of_claims_crashes_and_commands() -> None:
    for name in MODELS:
        ServedModel.objects.create(name=name, source=name, endpoints=CHAT_ENDPOINTS)
    # What a commit survives is the other tests' matter; here it only has to be fast.
    name = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        cursor.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    connection.close()
    deep = settings.get_current_profile_name() == DEEP
    short = settings(max_examples=20, stateful_step_count=40, derandomize=True, database=None)
    chosen = settings(settings.default if deep else short, deadline=None, suppress_health_check=list(HealthCheck))
    try:
        run_state_machine_as_test(Machine, settings=chosen)
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f'ALTER DATABASE "{name}" RESET synchronous_commit')
        connection.close()


@pytest.mark.django_db(transaction=True, serialized_rollback=True)
def test_a_commit_whose_answer_was_lost_is_not_written_again_though_its_line_was_retried_since() -> None:
    batch = new_batch(lines=2, shard_lines=2)
    batch.move(BatchStatus.IN_PROGRESS, total=2, model=MODEL)
    lease = leases.claim(batch.pk, MODEL, "a")
    assert lease
    commit = Commit([(lease, Outcome(batch.pk, 1, "c1", 500, "", b"{}"))], Noted(), "")
    commit()
    retrying.retry(batch, ["c1"], by="a test")
    commit()
    batch.refresh_from_db()
    assert (batch.completed, batch.failed) == (0, 0)
    assert list(Shard.objects.order_by("index").values_list("count", "done")) == [(1, 0), (1, 0)]
