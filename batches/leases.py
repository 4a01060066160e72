"""Leases on shards: claim, renew, commit, release. The one place where results enter the database.

A lease has an epoch, and every write names it: a worker that lost its lease writes nothing. Locks are always taken in
the order shard, then batch by id, so that two workers never wait for each other. When a lease ends is written and read
by the database's clock alone: those of hosts differ, and are set.
"""

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.backends.utils import CursorWrapper
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from batches import counting, doorbell, samples
from batches.demand import Waiting
from batches.models import Batch, Result, Shard, StaleTransition
from batches.outcome import Outcome
from batches.planning import PlannedLine, unpack
from batches.signals import let_go, progressed
from batches.states import OPEN_SHARDS, BatchStatus, ShardState
from files.models import File
from vbatch_site import clock


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run one shard's lines and to commit their results, until it is lost."""

    shard_id: int
    epoch: int
    batch_id: str
    project_id: int
    weight: int  # the project's share
    model: str
    default_model: str
    endpoint: str
    input_path: str
    expires_at: datetime
    lines: tuple[PlannedLine, ...]  # those without a result yet
    holder: str = ""
    claimed_at: datetime = field(default_factory=timezone.now)


logger = logging.getLogger(__name__)

_COPY = f"COPY batches_result (position, {', '.join(Outcome._fields)}) FROM STDIN (FORMAT BINARY)"
_OUTCOME_TYPES = ["varchar", "int4", "text", "int2", "varchar", "bytea", "varchar", "text", *["int4"] * 5, "int2"]


def _term() -> timedelta:
    return timedelta(seconds=settings.VBATCH_LEASE_SECONDS)


def _live() -> Q:
    # One that ends further ahead than any lease does was given before the clock was set back.
    return Q(state=ShardState.LEASED, lease_expires_at__range=(Now(), Now() + 2 * _term()))


def _claimable() -> Q:
    return Q(state=ShardState.PENDING) | (Q(state=ShardState.LEASED) & ~_live())


def waiting() -> list[Waiting]:
    """Return the open work of each running batch and model, oldest batch first."""
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT b.id, b.project_id, s.model, coalesce(b.served_at, b.created_at), b.created_at, b.expires_at,
                   coalesce(sum(s.count - s.done) FILTER (WHERE l.is_live IS NOT true), 0),
                   coalesce(sum(s.count - s.done) FILTER (WHERE l.is_live), 0),
                   b.priority, p.weight
              FROM batches_shard s JOIN batches_batch b ON b.id = s.batch_id
              JOIN vbatch_site_project p ON p.id = b.project_id
             CROSS JOIN LATERAL (SELECT s.lease_expires_at BETWEEN statement_timestamp()
                   AND statement_timestamp() + make_interval(secs => 2 * %(term)s)) l(is_live)
             WHERE b.status = 'in_progress' AND b.paused_at IS NULL AND b.expires_at > statement_timestamp()
               AND s.state IN ('pending', 'leased')
             GROUP BY b.id, s.model, p.weight ORDER BY b.created_at, b.id
            """,
            {"term": settings.VBATCH_LEASE_SECONDS},
        )
        names = [column.name for column in fields(Waiting)]
        return [Waiting(**dict(zip(names, row, strict=True))) for row in cursor.fetchall()]


def claim(batch_id: str, model: str, holder: str) -> Lease | None:
    """Take the batch's next shard for the model, or return None when others were faster."""
    now = clock.now()
    with transaction.atomic():
        shard = (
            Shard.objects.filter(_claimable(), batch_id=batch_id, model=model, state__in=OPEN_SHARDS)
            .select_for_update(skip_locked=True)
            .order_by("index")
            .first()
        )
        if shard is None:
            return None
        open_batches = Batch.objects.select_related("project").filter(paused_at=None, status=BatchStatus.IN_PROGRESS)
        batch = open_batches.filter(pk=batch_id).first()
        if batch is None:
            return None
        taken_before = shard.epoch > 0
        Batch.objects.filter(pk=batch_id).update(served_at=now)
        Shard.objects.filter(pk=shard.pk).update(
            state=ShardState.LEASED, epoch=F("epoch") + 1, holder=holder, lease_expires_at=Now() + _term()
        )
        silent = shard.holder if shard.state == ShardState.LEASED else ""
        if silent:
            counting.lease_lost(batch.project_id, model)
    about = {"batch": batch_id, "shard": shard.pk, "model": model, "holder": holder}
    if silent:
        logger.warning("shard taken over", extra={"action": "lease_lost", **about, "from": silent})
    else:
        logger.info("shard claimed", extra={"action": "shard_claimed", **about, "lines": shard.count - shard.done})
    lines = tuple(unpack(shard.lines))
    if taken_before:
        numbers = [line.number for line in lines]
        found = set(Result.objects.filter(batch_id=batch_id, line__in=numbers).values_list("line", flat=True))
        lines = tuple(line for line in lines if line.number not in found)
    path = File.objects.values_list("path", flat=True).get(pk=batch.input_file_id)
    return Lease(
        shard_id=shard.pk,
        epoch=shard.epoch + 1,
        batch_id=batch.pk,
        project_id=batch.project_id,
        weight=batch.project.weight,
        model=model,
        default_model=batch.default_model,
        endpoint=batch.endpoint,
        input_path=path,
        expires_at=batch.expires_at,
        lines=lines,
        holder=holder,
    )


class Renewed(NamedTuple):
    """Shards that are still ours, by what their batches want; those in neither are to be let go."""

    wanted: set[int]
    paused: set[int]


def renew(leases: Iterable[Lease]) -> Renewed:
    """Prolong leases; return the shards whose batches still want to be run, now or later."""
    renewed = Renewed(set(), set())
    pairs = [(lease.shard_id, lease.epoch) for lease in leases]
    if not pairs:
        return renewed
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE batches_shard s SET lease_expires_at = statement_timestamp() + make_interval(secs => %s)
              FROM unnest(%s::bigint[], %s::int[]) AS mine(id, epoch), batches_batch b
             WHERE s.id = mine.id AND s.epoch = mine.epoch AND s.state = 'leased' AND b.id = s.batch_id
         RETURNING s.id, b.status, b.paused_at
            """,
            [settings.VBATCH_LEASE_SECONDS, *map(list, zip(*pairs, strict=True))],
        )
        for shard_id, status, paused_at in cursor.fetchall():
            if status == BatchStatus.IN_PROGRESS:
                (renewed.paused if paused_at else renewed.wanted).add(shard_id)
    return renewed


@dataclass(slots=True)
class _Sums:
    """What one commit adds to a batch's counters."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    committed: int = 0

    def add(self, outcome: Outcome) -> None:
        self.committed += 1
        if outcome.succeeded:
            self.completed += 1
            self.input_tokens += outcome.input_tokens
            self.cached_tokens += outcome.cached_tokens
            self.output_tokens += outcome.output_tokens
            self.reasoning_tokens += outcome.reasoning_tokens
        else:
            self.failed += 1


_ADDED = ", ".join(f"{name} = {name} + %s" for name in _Sums.__slots__)
_COUNT = f"UPDATE batches_batch SET {_ADDED} WHERE id = %s RETURNING committed, completed + failed, total"  # noqa: S608 (our own names)


_NOTE = """
    INSERT INTO batches_batch_provenance (batch_id, provenance_id)
    SELECT b.id, mine.name FROM unnest(%s::text[], %s::text[]) AS mine(id, name)
      JOIN batches_batch b ON b.id = mine.id ORDER BY b.id FOR KEY SHARE OF b
        ON CONFLICT DO NOTHING
"""


class InDoubt(OperationalError):
    """A commit is still on its way in the database, whose answer was lost."""


class Attempt:
    """One commit, as the database knows it: whoever lost its answer can ask what became of it."""

    def __init__(self) -> None:
        self.transaction: str | None = None

    def succeeded(self) -> bool:
        """Return whether it was written; raise InDoubt while that is not decided."""
        if self.transaction is None:
            return False
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_xact_status(%s::xid8)", [self.transaction])
            status = cursor.fetchone()[0]
        if status == "in progress":
            raise InDoubt(self.transaction)
        return bool(status == "committed")


def commit(finished: Sequence[tuple[Lease, Outcome]], attempt: Attempt | None = None) -> set[int]:
    """Write results, counters and leases in one transaction; return the shards whose lease was kept.

    Results of a lost lease are dropped: another worker runs those lines.
    """
    by_shard: dict[int, list[Outcome]] = defaultdict(list)
    found: dict[int, Lease] = {}
    for lease, outcome in finished:
        by_shard[lease.shard_id].append(outcome)
        found[lease.shard_id] = lease
    ids = sorted(by_shard)
    now = timezone.now()
    with transaction.atomic(), connection.cursor() as cursor:
        # Rows are locked in id order first, because an UPDATE with a join locks in any order.
        cursor.execute(
            "SELECT pg_current_xact_id()::text FROM batches_shard WHERE id = ANY(%s) ORDER BY id FOR UPDATE", [ids]
        )
        if attempt is not None and (row := cursor.fetchone()):
            attempt.transaction = row[0]
        cursor.execute(
            """
            UPDATE batches_shard s
               SET done = s.done + mine.n,
                   lease_expires_at = statement_timestamp() + make_interval(secs => %s),
                   state = CASE WHEN s.done + mine.n >= s.count THEN 'done' ELSE s.state END
              FROM unnest(%s::bigint[], %s::int[], %s::int[]) AS mine(id, epoch, n)
             WHERE s.id = mine.id AND s.epoch = mine.epoch AND s.state = 'leased'
         RETURNING s.id, s.batch_id, s.state
            """,
            [settings.VBATCH_LEASE_SECONDS, ids, [found[i].epoch for i in ids], [len(by_shard[i]) for i in ids]],
        )
        rows = cursor.fetchall()
        kept = sorted(shard_id for shard_id, _, _ in rows)
        positions = _count(cursor, (outcome for shard_id in kept for outcome in by_shard[shard_id]))
        # Written after the batches' rows are locked: the next position goes to whoever commits next.
        fresh = (outcome for shard_id in kept for outcome in by_shard[shard_id])
        _write(cursor, ((next(positions[outcome.batch_id]), outcome) for outcome in fresh))
        samples.add(cursor, now, ((found[shard_id].model, by_shard[shard_id]) for shard_id in kept))
        about = {shard_id: (lease.project_id, lease.model) for shard_id, lease in found.items()}
        counting.lines((*about[shard_id], by_shard[shard_id]) for shard_id in kept)
        counting.dropped((*about[shard_id], len(by_shard[shard_id])) for shard_id in set(ids) - set(kept))
        # The batch's row is locked by now, so of two workers that commit its last shards the second sees the first's.
        for batch_id in sorted({batch_id for _, batch_id, state in rows if state == ShardState.DONE}):
            finish_if_done(batch_id)
    for shard_id, batch_id, state in rows:
        if state == ShardState.DONE:
            logger.info("shard done", extra={"action": "shard_done", "batch": batch_id, "shard": shard_id})
            let_go.send(Lease, lease=found[shard_id], outcome="done")
    return set(kept)


def write_settled(first: int, outcomes: Sequence[Outcome]) -> None:
    """Write results of a batch that is not open yet, so that nobody holds a lease; positions count from the first."""
    if outcomes:
        with transaction.atomic(), connection.cursor() as cursor:
            _write(cursor, enumerate(outcomes, first))


def _write(cursor: CursorWrapper, results: Iterable[tuple[int, Outcome]]) -> None:
    with cursor.copy(_COPY) as copy:  # several times cheaper than INSERT on both sides
        copy.set_types(["int4", *_OUTCOME_TYPES])
        for position, outcome in results:
            copy.write_row((position, *outcome))


def _count(cursor: CursorWrapper, outcomes: Iterable[Outcome]) -> dict[str, Iterator[int]]:
    """Add outcomes to their batches' counters; return the positions of each batch's new results."""
    sums: dict[str, _Sums] = defaultdict(_Sums)
    for outcome in outcomes:
        sums[outcome.batch_id].add(outcome)
    positions = {}
    for batch_id in sorted(sums):
        cursor.execute(_COUNT, [*(getattr(sums[batch_id], name) for name in _Sums.__slots__), batch_id])
        last, done, total = cursor.fetchone()
        before = done - sums[batch_id].completed - sums[batch_id].failed
        progressed.send(Batch, batch_id=batch_id, before=before, after=done, total=total)
        positions[batch_id] = iter(range(last - sums[batch_id].committed + 1, last + 1))
    return positions


def note_provenance(pairs: Iterable[tuple[str, str]]) -> None:
    """Keep with batches which engines, by their provenance's name, answer their lines."""
    with connection.cursor() as cursor:
        # A batch that was deleted meanwhile, with its project, is passed over.
        cursor.execute(_NOTE, [list(column) for column in zip(*pairs, strict=True)])


def finish_if_done(batch_id: str) -> None:
    """Move a batch without open shards to finalizing; call with its row locked."""
    if Shard.objects.filter(batch_id=batch_id, state__in=OPEN_SHARDS).exists():
        return
    try:
        Batch(pk=batch_id).move(BatchStatus.FINALIZING)
    except StaleTransition:
        return  # cancelled or expired meanwhile: that road has its own doorbell
    doorbell.ring_finalize(batch_id)


def release(leases: Iterable[Lease]) -> None:
    """Give shards back with what is left of them, and ring for whoever waits for that."""
    batches = set()
    for lease in leases:
        with transaction.atomic():
            Shard.objects.filter(pk=lease.shard_id, epoch=lease.epoch, state=ShardState.LEASED).update(
                state=ShardState.PENDING, holder="", lease_expires_at=None
            )
        batches.add(lease.batch_id)
        let_go.send(Lease, lease=lease, outcome="released")
    _ring_for(batches)


def _ring_for(batches: set[str]) -> None:
    """Ring for whoever waits for shards of these batches to be given back."""
    for batch in Batch.objects.filter(pk__in=batches):
        match batch.status:
            case BatchStatus.CANCELLING | BatchStatus.FINALIZING:
                doorbell.ring_finalize(batch.pk)
            case BatchStatus.IN_PROGRESS:
                doorbell.ring_gpu()


def abort(batch_id: str, code: str, message: str) -> None:
    """End a batch whose lines can't be run: those left get this error, and the files are written."""
    with transaction.atomic():
        try:
            Batch(pk=batch_id).move(BatchStatus.FINALIZING, reason=code, abort_code=code, abort_message=message)
        except StaleTransition:
            return
        doorbell.ring_finalize(batch_id)


def abort_model(batch_id: str, model: str, code: str, message: str) -> None:
    """End a batch's work for one model; what is left of it gets this error, and other models' lines go on."""
    with transaction.atomic():
        shards = Shard.objects.filter(batch_id=batch_id, model=model, state__in=OPEN_SHARDS)
        held = list(shards.select_for_update().order_by("id").values_list("id", flat=True))
        running = Batch.objects.filter(pk=batch_id, status=BatchStatus.IN_PROGRESS).select_for_update(no_key=True)
        # Lines of a batch that was cancelled or too late before were that first.
        reason = {"abort_code": code, "abort_message": message} if running.exists() else {}
        Shard.objects.filter(pk__in=held).update(state=ShardState.CLOSED, epoch=F("epoch") + 1, **reason)
        if reason:
            finish_if_done(batch_id)


def close_shards(batch_id: str) -> bool:
    """Fence a batch off from its workers; return False while one still holds a live lease on it."""
    with transaction.atomic():
        shards = Shard.objects.filter(batch_id=batch_id, state__in=OPEN_SHARDS)
        list(shards.select_for_update().order_by("id").values_list("id"))
        if are_held(batch_id):
            return False
        shards.update(state=ShardState.CLOSED, epoch=F("epoch") + 1)
    return True


def are_held(batch_id: str) -> bool:
    """Return whether a worker holds a live lease on a batch."""
    return Shard.objects.filter(_live(), batch_id=batch_id).exists()


def free(holders: Collection[str]) -> int:
    """Give back what workers that are certainly dead held, without waiting for it to run out; return the shards."""
    held = Shard.objects.filter(holder__in=holders, state=ShardState.LEASED)
    found = list(held.values_list("pk", "batch_id"))
    for shard_id, _ in found:
        held.filter(pk=shard_id).update(state=ShardState.PENDING, holder="", lease_expires_at=None)
    _ring_for({batch_id for _, batch_id in found})
    return len(found)
