"""The life of batches in random order: what people, workers, tasks, crashes and the clock may do, at any time.

The machine does one thing after another on the real tables and the real storage, and keeps a small model beside them:
which answer of which line was accepted. After each step the rows agree with it, and at the end the files do.

A crash is a process that ends before its n-th statement: its transaction is undone, its session's locks go, and nobody
cleans up after it. Time passes by moving times in rows.
"""

from collections.abc import Sequence
from datetime import timedelta

import psycopg
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.db.models import F
from django.test import override_settings
from django.utils import timezone
from django.utils.module_loading import import_string
from django_q.models import OrmQ
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batches import creation, leases, retrying, steering, sweep
from batches.locks import lock_key
from batches.models import Batch, Shard, StaleTransition
from batches.outcome import Outcome
from batches.planning import unpack
from batches.states import OPEN_SHARDS, TERMINAL, BatchStatus, ShardState
from batches.tests.rows import MODEL, new_batch
from files import uploads
from files.models import File
from vbatch_site.openai.errors import ApiError
from workers.commits import Commit, Noted
from workers.models import CHAT_ENDPOINTS, ServedModel
from workers.tests.books import Books, Known, Line, Worker, stored
from workers.tests.crashing import NEVER, crashing

pytestmark = pytest.mark.slow

MODELS = ("m0", "m1")
FATES = ("ok", "ok", "500", "lost")  # an answer, an engine's refusal, an engine that died
MOST_BATCHES = 6  # in one run: what interleaves has to meet

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


class Machine(Books):
    """Everything that happens to batches, one thing at a time."""

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
                self.known[found.pk] = Known(found.pk, known.lines, known, chosen)
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
        waiting = [w for w in leases.waiting() if w.lines]
        if not waiting:
            return
        wanted = waiting[pick % len(waiting)]
        if crash_at is not None:
            with crashing(crash_at):
                leases.claim(wanted.batch_id, wanted.model, "a worker that dies")
            self._forget_stolen()
            return
        now = timezone.now()
        held = Shard.objects.filter(state=ShardState.LEASED, lease_expires_at__range=(now, now + timedelta(minutes=1)))
        live = set(held.values_list("pk", flat=True))
        lease = leases.claim(wanted.batch_id, wanted.model, f"worker {len(self.workers)}")
        assert lease is not None, "work that waits can be had"
        assert lease.shard_id not in live, "leases overlap"
        known = self.known[lease.batch_id]
        todo = [line.number for line in lease.lines]
        assert not set(todo) & known.answers.keys(), "a finished line is given out again"
        self.last[lease.shard_id] = worker = Worker(lease, todo)
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
            batch_id, model = worker.lease.batch_id, worker.lease.model
            if whole_batch:
                leases.abort(batch_id, "engine_unavailable", "It keeps dying.")
                return
            if Batch.objects.filter(pk=batch_id, status=BatchStatus.IN_PROGRESS).exists():
                known = self.known[batch_id]
                shards = Shard.objects.filter(batch_id=batch_id, model=model, state__in=OPEN_SHARDS)
                left = {line.number for packed in shards.values_list("lines", flat=True) for line in unpack(packed)}
                known.given_up |= left - known.answers.keys()
            leases.abort_model(batch_id, model, "model_load_failed", "No memory.")

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

    @rule(ahead=st.booleans())
    def the_clock_is_set(self, ahead: bool) -> None:
        """Set it by an hour: all that was written has moved to the other side."""
        moved = timedelta(hours=-1 if ahead else 1)
        Shard.objects.filter(state=ShardState.LEASED).update(lease_expires_at=F("lease_expires_at") + moved)
        names = ("created_at", "in_progress_at", "rung_at", "expires_at")
        Batch.objects.update(**{name: F(name) + moved for name in names})

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

    # The end.

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
            assert not {name for name in stored() - self.files_before if not name.endswith(".index")} - owned
            for batch in Batch.objects.all():
                assert bool(batch.purged_at)
        finally:
            with connection.cursor() as cursor:
                for table in _TABLES:
                    cursor.execute(f"DELETE FROM {table}")  # noqa: S608 (our own names)

    # Beside the rules.

    def _create(self, models: Sequence[str | None], skip: bool, crash_at: int | None = None) -> None:
        lines = [Line(f"c{n}", model) for n, model in enumerate(models, 1)]
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
            self.known[pk] = Known(pk, lines)

    def _ring_all(self) -> None:
        while rows := list(OrmQ.objects.all()):
            for row in rows:
                OrmQ.objects.filter(pk=row.pk).delete()
                if row.key == "default":
                    import_string(row.task["func"])(*row.task["args"])

    def _work_through(self) -> None:
        """Be one good worker who does all that waits."""
        while waiting := [w for w in leases.waiting() if w.lines]:
            lease = leases.claim(waiting[0].batch_id, waiting[0].model, "the last worker")
            assert lease is not None
            self.last[lease.shard_id] = worker = Worker(lease, [line.number for line in lease.lines])
            assert worker.todo, "a shard without open lines is open"
            commit, outcomes = self._commit_of(worker, len(worker.todo), ["ok"] * len(worker.todo))
            self._note(worker, outcomes, commit, is_certain=True)


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
        # Time passes by moving times in rows, so no lease ends by itself, however long a step takes.
        with override_settings(VBATCH_LEASE_SECONDS=3600):
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
