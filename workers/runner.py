"""Run batches: claim shards, keep an engine for their model, stream their lines to it, commit what comes back.

One runner is one engine slot. It lives on one event loop; the database is used from one thread beside it, so that a
slow query never keeps the engine waiting. Lines of several shards are in flight at once, and the next shard is
claimed before the present one runs dry.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError

from batches import leases
from batches.outcome import Outcome
from batches.planning import by_answer
from batches.wire import Usage
from vbatch_site import clock
from workers import demand, registry, scheduler, steering, traffic
from workers.admission import Admission
from workers.backlog import Backlog
from workers.client import Reply
from workers.commits import Outbox
from workers.database import call
from workers.engine import EngineError
from workers.failures import Failure
from workers.feeding import LOOK_SECONDS, MOST_LOOK_SECONDS, Feeding, Gauges
from workers.housekeeping import every, sweep_forever, wait
from workers.lines import UNREADABLE, Held, Line, checked
from workers.shared import slot_for
from workers.slot import Engine, NoServiceError
from workers.unreadable import LeftAlone

logger = logging.getLogger(__name__)

T = TypeVar("T")

TICK_SECONDS = 0.5  # between two rounds of the loop; new work is noticed so soon without a doorbell while idle
RENEW_SECONDS = 1.0  # how soon a cancelled or paused batch, or a lost lease, is noticed
# While lines are in hand a doorbell or a backlog that runs dry asks for more; on a machine without a GPU every query
# here takes time from the engine, which waits for its slowest thread in each step.
SEARCH_SECONDS = 2.0
BEAT_SECONDS = 2.0  # between two signs of life in the database
LEARN_SECONDS = 5.0  # between two looks at what loading costs and what other workers have loaded
PAUSE_GRACE_SECONDS = 2.5  # what lines in flight get to finish when their batch is paused
DRAIN_SECONDS = 7.0  # what lines in flight get to finish when the process is asked to stop; all of it takes under 15
MAX_ATTEMPTS = 3  # of one line, engine crashes not counted
BACKOFF_SECONDS = 0.5  # before the second attempt; doubles
MAX_CULPRITS = 3  # engine deaths pinned on single lines in a row, after which the batches of these end


class Runner:
    """Owns one engine slot."""

    def __init__(self, holder: str, environment: dict[str, str]) -> None:
        self.holder = holder
        self.stopping = False
        self._wake = asyncio.Event()
        self._database = ThreadPoolExecutor(1, thread_name_prefix="runner-db")
        self._background = ThreadPoolExecutor(1, thread_name_prefix="runner-sweep")
        self._held: list[Held] = []
        self._backlog = Backlog()
        # Lines that were in flight when an engine died, in groups that are run one after the other.
        self._suspects: deque[list[Line]] = deque()
        self._trial: set[Line] = set()
        self._culprits: list[str] = []  # batches of lines that an engine died of, since one was answered
        self._in_flight: set[Line] = set()
        self._fault: BaseException | None = None
        self._renewed_at = self._searched_at = 0.0
        self._woken = False
        self._dry = False  # nothing was there to claim when we last looked
        self._slot = slot_for(holder, environment, self._db)
        self._outbox = Outbox(self._db, lambda: self._slot.engine.provenance if self._slot.engine else "")
        self._feeding = Feeding()
        self._admission = Admission()
        self._feed_again: asyncio.TimerHandle | None = None
        self._admissions: dict[str, Admission] = {}  # of the models that ran here: they know how fast each one is
        self._rates: dict[str, float] = {}  # lines a second of the models that ran here
        self._prices: dict[str, float] = {}
        self._elsewhere: dict[str, int] = {}
        self._live: dict[str, datetime] = {}
        self._orders = steering.Orders()
        self._loading: asyncio.Task[None] | None = None
        self._unreadable = LeftAlone()

    # The loop.

    async def run(self) -> None:
        """Work until asked to stop, then give everything back."""
        committer = asyncio.create_task(self._commit_forever())
        sides = [
            asyncio.create_task(every(BEAT_SECONDS, self._beat)),
            asyncio.create_task(every(LEARN_SECONDS, self._learn)),
            asyncio.create_task(every(LOOK_SECONDS, self._listen)),
            asyncio.create_task(self._look_forever()),
            asyncio.create_task(sweep_forever(self._background)),
        ]
        try:
            while not self.stopping:
                self._woken = self._wake.is_set()
                self._wake.clear()
                await self._step()
                await wait(self._wake, TICK_SECONDS)
                for task in (committer, *sides):
                    if task.done():
                        task.result()  # a runner never goes on half alive
                if self._fault is not None:
                    raise self._fault
        finally:
            await self._stop(committer, sides)

    def wake(self) -> None:
        """Look for work now; call on the loop's thread."""
        self._wake.set()

    def stop(self) -> None:
        """Stop soon; call on the loop's thread."""
        self.stopping = True
        self._wake.set()

    async def _step(self) -> None:
        """Do what the present state asks for: keep leases, mend the engine, take more work."""
        await self._keep_leases()
        if self._loading is not None:
            if not self._loading.done():
                return
            await self._loading
            self._loading = None
        self._slot = await self._slot.refresh()
        engine = self._slot.engine
        if engine is not None and not engine.process.is_alive:
            await self._engine_died(engine)
            return
        if self._slot.is_closing:
            await self._leave()
            return
        for held in [held for held in self._held if held.closing and not held.tasks]:
            await self._drop(held)
            self._woken = True
        if self._woken or time.monotonic() - self._searched_at >= (SEARCH_SECONDS if self._held else 0.0):
            await self._claim()
            self._searched_at = time.monotonic()
        self._feed()

    # Leases.

    async def _keep_leases(self) -> None:
        """Renew, and let go of what is no longer ours or no longer wanted."""
        if not self._held or time.monotonic() - self._renewed_at < RENEW_SECONDS:
            return
        self._renewed_at = time.monotonic()
        renewed = await self._db(leases.renew, [held.lease for held in self._held])
        now = clock.now()
        for held in list(self._held):
            if held.lease.shard_id in renewed.paused and not held.paused_since:
                held.closing, held.paused_since = True, time.monotonic()
                self._unqueue(held)
            kept = held.lease.shard_id in renewed.wanted or held.lease.shard_id in renewed.paused
            late = held.paused_since and time.monotonic() - held.paused_since > PAUSE_GRACE_SECONDS
            if late or not kept or held.lease.expires_at <= now:
                await self._drop(held)

    def _unqueue(self, held: Held) -> None:
        """Start no more of a shard's lines."""
        self._backlog.remove(held)
        self._suspects = deque(g for group in self._suspects if (g := [x for x in group if x.held is not held]))

    async def _drop(self, held: Held) -> None:
        """Abort a shard's lines, commit those that are finished, and release the rest."""
        held.dropped = True
        self._unqueue(held)
        for task in list(held.tasks):
            task.cancel()
        await asyncio.gather(*held.tasks, return_exceptions=True)
        self._trial = {line for line in self._trial if line.held is not held}
        await self._commit()
        if held in self._held:
            self._held.remove(held)
            await self._db(leases.release, [held.lease])
        held.close()

    async def _leave(self) -> None:
        """Leave an engine that ends soon: start nothing more, and give back what would not be done in time."""
        self._backlog.clear()
        for held in [held for held in self._held if self._slot.is_over or not held.tasks]:
            await self._drop(held)
        if not self._held:
            self._trial.clear()
            await self._slot.put_away()

    async def _claim(self) -> None:
        """Take shards until enough lines wait in hand, or change the model."""
        await self._hear()
        if self._orders.frees_gpu(self._slot.asked) and not self._held and not self._slot.is_empty:
            self._loading = asyncio.create_task(self._slot.clear())
            return
        while self._orders.takes_work and not self.stopping and not self._suspects and not self._trial:
            now = clock.now()
            waiting = self._unreadable.without(await self._slot.reachable(await self._db(leases.waiting)))
            facts = self._facts()
            model = scheduler.next_model(waiting, facts, now)
            if model is not None and model != facts.model:
                if model and model in self._live and not await self._db(demand.take, model, self.holder):
                    del self._live[model]  # another worker loads it
                    continue
                await self._change(model)
                return
            batch = scheduler.next_batch(waiting, facts, now)
            self._dry = batch is None
            if batch is None:
                return
            rank = scheduler.rank(batch, facts, now)
            if len(self._backlog) >= self._feeding.ahead and not self._backlog.lacks(rank, batch.project_id):
                return
            lease = await self._db(leases.claim, batch.batch_id, batch.model, self.holder)
            if lease is None:
                return
            opening = asyncio.ensure_future(asyncio.to_thread(Held.take, lease, rank))
            while not (await asyncio.wait({opening}, timeout=RENEW_SECONDS))[0]:  # it is fetched from a bucket
                await self._db(leases.renew, [lease])
                await self._keep_leases()
            try:
                held = opening.result()
            except OSError as error:
                if not self._unreadable.add(lease.batch_id, error):
                    await self._db(leases.abort, lease.batch_id, "input_file_lost", "The input file can't be read.")
                await self._db(leases.release, [lease])
                return
            self._held.append(held)
            self._backlog.add(Line(held, group[0], group[1:]) for group in by_answer(lease.lines))
            self._feed()

    async def _hear(self) -> None:
        """Learn which models live requests wait for that no other worker serves, and whether they use this one."""
        wanted = await self._db(demand.wanted, clock.now()) if self._slot.serves_live else {}
        self._live = {name: at for name, at in wanted.items() if not self._elsewhere.get(name)}
        self._live |= self._slot.asked | (self._orders.asked if self._slot.serves_live else {})
        if self._admission.is_live and self._slot.model is not None:
            self._live[self._slot.model] = self._slot.since

    def _facts(self) -> scheduler.Facts:
        """Return what the scheduler is to know of this slot."""
        return scheduler.Facts(
            model=self._slot.model,
            since=self._slot.since,
            prices=self._prices,
            rates=self._rates,
            elsewhere=self._elsewhere,
            live=self._live,
            busy=any(not held.closing for held in self._held),
        )

    # The engine.

    async def _change(self, model: str) -> None:
        """Give back what is not started, and load another model once nothing is in flight."""
        self._backlog.clear()
        for held in self._held:
            held.closing = True
        if not self._held and not self._in_flight and not len(self._outbox):
            self._loading = asyncio.create_task(self._load(model))

    async def _load(self, model: str) -> None:
        """Have a model loaded, or end the batches that wait for it."""
        try:
            await self._slot.load(model)
        except NoServiceError:
            for held in list(self._held):
                await self._drop(held)
            return  # suspects of a dead engine are for whoever has one next
        except EngineError as error:
            await self._give_up(model, str(error))
            return
        self._feeding = Feeding()
        self._admission = self._admissions.setdefault(model, Admission())
        self._wake.set()

    async def _give_up(self, model: str, why: str) -> None:
        """End every batch that needs a model which can't be loaded."""
        self._orders = steering.Orders(self._orders.wanted)
        waiting = await self._db(leases.waiting)
        batches = {batch.batch_id for batch in waiting if batch.model == model}
        batches |= {held.lease.batch_id for held in self._held if held.lease.model == model}
        for batch_id in sorted(batches):
            await self._db(leases.abort_model, batch_id, model, "model_load_failed", why)

    async def _engine_died(self, engine: Engine) -> None:
        """Restart after a crash, with the lines that were in flight under suspicion."""
        # These end when their connections are gone, and put their lines among the suspects. Nothing is started
        # meanwhile: a dead engine is fed no lines.
        engine.client.break_off()
        tasks = [task for held in self._held for task in held.tasks]
        await asyncio.gather(*tasks, return_exceptions=True)
        suspects = sorted(self._in_flight | self._trial, key=lambda line: (line.held.lease.shard_id, line.place.number))
        for line in suspects:
            self._left(line)
        self._trial.clear()
        if not await self._slot.blames_lines():
            for held in list(self._held):
                await self._drop(held)
            await self._slot.bury()
            return
        extra = {"action": "engine_died", "model": engine.model, "in_flight": len(suspects)}
        logger.warning("engine died", extra=extra)
        if len(suspects) == 1:
            line = suspects[0]
            self._culprits.append(line.held.lease.batch_id)
            self._finish(line, line.outcomes(Reply(0, b"", Failure.ENGINE_LOST), Usage(), 0))
        elif suspects:
            half = len(suspects) // 2
            self._suspects.extendleft([suspects[half:], suspects[:half]])
        if len(self._culprits) >= MAX_CULPRITS:
            culprits, self._culprits = self._culprits, []
            for batch_id in sorted(set(culprits)):
                await self._db(leases.abort, batch_id, "engine_unavailable", "The engine keeps dying on this batch.")
        await self._slot.bury()
        self._loading = asyncio.create_task(self._load(engine.model))

    async def _look_forever(self) -> None:
        """Read the engine's gauges and learn how much to feed it, less often while nothing is learned."""
        pause, looked_at = LOOK_SECONDS, time.monotonic()
        while True:
            await asyncio.sleep(pause)
            engine = self._slot.engine
            if engine is None or not self._in_flight:
                pause, looked_at = LOOK_SECONDS, time.monotonic()
                continue
            page = await engine.client.metrics()
            try:
                gauges = Gauges.parse(page) if page is not None else None
            except ValueError:
                gauges = None
            now, before = time.monotonic(), self._feeding.limit
            self._feeding.look(gauges, len(self._in_flight), now - looked_at)
            looked_at = now
            pause = LOOK_SECONDS if self._feeding.limit != before else min(MOST_LOOK_SECONDS, pause * 2)
            if self._feeding.lines_per_second:
                self._rates[engine.model] = self._feeding.lines_per_second
            self._feed()

    async def _listen(self) -> None:
        """Learn how long live requests wait for their first token, and how many lines that leaves room for."""
        engine = self._slot.engine
        if engine is not None:
            self._admission.look(await self._db(traffic.read, engine.row), len(self._in_flight), time.time())
            self._feed()

    # Lines.

    def _feed(self) -> None:
        """Start lines while there is room."""
        engine = self._slot.engine
        if engine is None or not engine.process.is_alive:
            return
        if self._suspects or self._trial:
            if not self._in_flight and not self._trial:
                group = self._suspects.popleft()
                self._trial = set(group)
                for line in group:
                    self._start(line, engine)
            return
        if self._slot.is_closing:
            return
        limit = min(self._feeding.limit, self._admission.limit)
        if self._feed_again is not None:
            self._feed_again.cancel()
            self._feed_again = None
        while len(self._backlog) and len(self._in_flight) < limit and not self.stopping:
            if pause := self._admission.pause(time.monotonic()):
                self._feed_again = asyncio.get_running_loop().call_later(pause, self._feed)
                return
            self._start(self._backlog.next(), engine)

    def _start(self, line: Line, engine: Engine) -> None:
        self._in_flight.add(line)
        task = asyncio.create_task(self._run_line(line, engine))
        line.held.tasks.add(task)
        task.add_done_callback(line.held.tasks.discard)
        task.add_done_callback(self._failed)

    def _failed(self, task: "asyncio.Task[None]") -> None:
        """Remember a fault of ours in the running of a line: its shard would be held and never be done."""
        if not task.cancelled() and (fault := task.exception()):
            self._fault = fault
            self._wake.set()

    def _left(self, line: Line) -> None:
        """Note that a line is no longer in the engine."""
        if line in self._in_flight:
            self._in_flight.discard(line)
            self._backlog.ended(line)

    async def _run_line(self, line: Line, engine: Engine) -> None:
        """Run one line until it has a result, its engine dies, or its shard is dropped."""
        started = time.monotonic()
        try:
            try:
                body = line.read()
            except UNREADABLE:
                self._finish(line, line.outcomes(Reply(0, b"", Failure.LINE_UNREADABLE), Usage(), 0))
                return
            while True:
                line.attempts += 1
                reply, usage = checked(await engine.client.post(line.held.lease.endpoint, body))
                if reply.failure is Failure.CONNECTION_LOST and not await engine.process.survives():
                    line.attempts -= 1
                    self._wake.set()
                    return  # stays in flight, and so among the suspects
                if reply.failure is None or not reply.failure.is_retriable or line.attempts >= MAX_ATTEMPTS:
                    break
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (line.attempts - 1) * random.uniform(0.75, 1.25))  # noqa: S311
            if reply.failure is None:
                self._culprits.clear()
                self._slot.took(time.monotonic() - started)
            self._finish(line, line.outcomes(reply, usage, int((time.monotonic() - started) * 1000)))
        except OSError as error:  # of the input file; the client raises none
            self._unreadable.add(line.held.lease.batch_id, error)
            self._give_back(line)
        except asyncio.CancelledError:
            self._left(line)
            raise

    def _give_back(self, line: Line) -> None:
        """Let go of a line that did not run, and of its shard once nothing of that is in flight."""
        line.held.closing = True
        self._unqueue(line.held)
        self._left(line)
        self._trial.discard(line)
        self._feed()

    def _finish(self, line: Line, outcomes: list[Outcome]) -> None:
        self._left(line)
        self._trial.discard(line)
        self._feeding.finished()
        self._outbox.add(line.held, outcomes, is_last=not self._in_flight and not len(self._backlog))
        self._feed()
        if len(self._backlog) < self._feeding.ahead // 2 and not self._dry:
            self._wake.set()

    # Results.

    async def _commit_forever(self) -> None:
        while True:
            await self._outbox.wait()
            await self._commit()

    async def _commit(self) -> None:
        """Write what is finished."""
        for held in await self._outbox.commit():
            if held in self._held:
                self._held.remove(held)
            held.close()

    # Beside the loop.

    async def _beat(self) -> None:
        self._orders = await self._db(steering.beat, self.holder)

    async def _learn(self) -> None:
        self._prices, self._elsewhere = await self._db(registry.facts, self.holder)

    async def _db(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on the database's thread, again and again while the database is away."""
        return await call(self._database, lambda: self.stopping, function, *args)

    async def _stop(self, committer: "asyncio.Task[None]", sides: Iterable["asyncio.Task[None]"]) -> None:
        """Let short lines finish, commit, release, and stop the engine, in this order."""
        self.stopping = True
        for task in sides:
            task.cancel()
        self._backlog.clear()
        deadline = time.monotonic() + DRAIN_SECONDS
        try:
            while self._in_flight and self._loading is None and time.monotonic() < deadline:
                await self._keep_leases()
                await asyncio.sleep(0.05)
            if self._loading is not None:
                self._loading.cancel()
                await asyncio.gather(self._loading, return_exceptions=True)
            committer.cancel()
            await asyncio.gather(committer, *sides, return_exceptions=True)
            for held in list(self._held):
                await self._drop(held)
            await self._commit()
            await self._slot.stop()
            await self._db(registry.stopped, self.holder)
        except (OperationalError, InterfaceError):
            logger.warning("stopped without a database; leases run out", extra={"action": "database_lost"})
            await self._slot.stop_quietly()
