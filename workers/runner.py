"""Run batches: claim shards, keep an engine for their model, stream their lines to it, commit what comes back.

One runner is one engine slot. It lives on one event loop; the database is used from one thread beside it, so that a
slow query never keeps the engine waiting. Lines of several shards are in flight at once, and the next shard is
claimed before the present one runs dry.
"""

import asyncio
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec
import uvloop
from django.conf import settings
from django.db import DatabaseError, InterfaceError, OperationalError, connections
from django.utils import timezone

from batches import leases
from batches.models import Result
from batches.outcome import Outcome
from batches.planning import by_answer
from batches.sweep import sweep
from batches.wire import Usage
from workers import registry, scheduler
from workers.client import EngineClient, Reply
from workers.engine import EngineError, EngineProcess
from workers.failures import Failure
from workers.lines import Held, Line, checked

logger = logging.getLogger(__name__)

T = TypeVar("T")

IN_FLIGHT = 512  # lines; more than any engine batches at once, so that it always has a next one
TICK_SECONDS = 0.5  # how soon a cancelled batch, a lost lease or new work is noticed without a doorbell
COMMIT_LINES = 256  # results in one transaction
COMMIT_SECONDS = 0.1  # how long a result waits for company; a crash repeats at most these and the lines in flight
BEAT_SECONDS = 2.0  # between two signs of life in the database
SWEEP_SECONDS = 5.0
DRAIN_SECONDS = 4.0  # what lines in flight get to finish when the process is asked to stop
MAX_ATTEMPTS = 3  # of one line, engine crashes not counted
BACKOFF_SECONDS = 0.5  # before the second attempt; doubles
LOAD_ATTEMPTS = 2
MAX_CULPRITS = 3  # engine deaths pinned on single lines in a row before the engine itself is blamed
DATABASE_RETRY_SECONDS = 1.0


class Runner:
    """Owns one engine slot."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        self.stopping = False
        self._wake = asyncio.Event()
        self._database = ThreadPoolExecutor(1, thread_name_prefix="runner-db")
        self._background = ThreadPoolExecutor(1, thread_name_prefix="runner-sweep")
        self._held: list[Held] = []
        self._queue: deque[Line] = deque()
        # Lines that were in flight when an engine died, in groups that are run one after the other.
        self._suspects: deque[list[Line]] = deque()
        self._trial: set[Line] = set()
        self._culprits = 0
        self._in_flight: set[Line] = set()
        self._finished: list[tuple[Held, Outcome]] = []
        self._commit_due = asyncio.Event()
        self._renewed_at = 0.0
        self._dry = False  # nothing was there to claim when we last looked
        self._engine: EngineProcess | None = None
        self._client: EngineClient | None = None
        self._loading: asyncio.Task[None] | None = None

    # The loop.

    async def run(self) -> None:
        """Work until asked to stop, then give everything back."""
        committer = asyncio.create_task(self._commit_forever())
        sides = [asyncio.create_task(self._every(BEAT_SECONDS, self._beat)), asyncio.create_task(self._sweep_forever())]
        try:
            while not self.stopping:
                self._wake.clear()
                await self._step()
                await self._wait(TICK_SECONDS)
                for task in (committer, *sides):
                    if task.done():
                        task.result()  # a runner never goes on half alive
        finally:
            await self._stop(committer, sides)

    def wake(self) -> None:
        """Look for work now; call on the loop's thread."""
        self._wake.set()

    def stop(self) -> None:
        """Stop soon; call on the loop's thread."""
        self.stopping = True
        self._wake.set()

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _step(self) -> None:
        """Do what the present state asks for: keep leases, mend the engine, take more work."""
        await self._keep_leases()
        if self._loading is not None:
            if not self._loading.done():
                return
            await self._loading
            self._loading = None
        if self._engine is not None and self._client is not None and not self._engine.is_alive:
            await self._engine_died(self._engine, self._client)
            return
        await self._claim()
        self._feed()

    # Leases.

    async def _keep_leases(self) -> None:
        """Renew, and let go of what is no longer ours or no longer wanted."""
        if not self._held or time.monotonic() - self._renewed_at < TICK_SECONDS:
            return
        self._renewed_at = time.monotonic()
        wanted = await self._db(leases.renew, [held.lease for held in self._held])
        now = timezone.now()
        for held in [h for h in self._held if h.lease.shard_id not in wanted or h.lease.expires_at <= now]:
            await self._drop(held)

    async def _drop(self, held: Held) -> None:
        """Abort a shard's lines, commit those that are finished, and release the rest."""
        held.dropped = True
        self._queue = deque(line for line in self._queue if line.held is not held)
        self._suspects = deque(g for group in self._suspects if (g := [x for x in group if x.held is not held]))
        for task in list(held.tasks):
            task.cancel()
        await asyncio.gather(*held.tasks, return_exceptions=True)
        self._trial = {line for line in self._trial if line.held is not held}
        await self._commit()
        if held in self._held:
            self._held.remove(held)
            await self._db(leases.release, [held.lease])
        held.close()

    async def _claim(self) -> None:
        """Take shards until the engine has more lines waiting than it can have in flight, or change the engine."""
        while not self.stopping and not self._suspects and len(self._queue) < IN_FLIGHT:
            waiting = await self._db(leases.waiting, timezone.now())
            loaded = self._engine.spec.name if self._engine else None
            choice = scheduler.choose(waiting, loaded, timezone.now())
            self._dry = choice is None
            if choice is None:
                return
            if choice.model != loaded:
                if not self._queue and not self._in_flight and not self._finished:
                    self._loading = asyncio.create_task(self._load(choice.model))
                return
            lease = await self._db(leases.claim, choice.batch_id, choice.model, self.holder)
            if lease is None:
                return
            try:
                held = Held.take(lease)
            except OSError:
                logger.exception("input file can't be opened", extra={"action": "input_lost", "batch": lease.batch_id})
                await self._db(leases.abort, lease.batch_id, "input_file_lost", "The input file can't be read.")
                await self._db(leases.release, [lease])
                return
            self._held.append(held)
            self._queue.extend(Line(held, group[0], group[1:]) for group in by_answer(lease.lines))
            self._feed()

    # The engine.

    async def _load(self, model: str) -> None:
        """Stop the present engine and start one for the model; on failure end the batches that wait for it."""
        await self._unload()
        for attempt in range(1, LOAD_ATTEMPTS + 1):
            spec = await self._db(registry.spec_for, model, self.holder)
            if spec is None:
                await self._give_up(model, "The model was removed from the catalogue.")
                return
            engine = EngineProcess(spec)
            row = await self._db(registry.starting, model, self.holder, engine.url)
            try:
                engine.start()
                await engine.wait_ready()
            except EngineError as error:
                engine.stop()
                await self._db(registry.failed, row, str(error))
                logger.warning("engine failed to load", extra={"action": "load_failed", "model": model})
                if not error.is_retriable or attempt == LOAD_ATTEMPTS:
                    await self._give_up(model, str(error))
                    return
                continue
            except asyncio.CancelledError:
                await asyncio.to_thread(engine.kill)
                raise
            self._engine = engine
            self._client = EngineClient(engine.url, engine.api_key, settings.VBATCH_REQUEST_TIMEOUT)
            await self._db(registry.ready, row, engine.load_seconds, engine.pid)
            logger.info("engine ready", extra={"action": "load", "model": model, "seconds": engine.load_seconds})
            self._wake.set()
            return

    async def _unload(self) -> None:
        engine, client = self._engine, self._client
        self._engine = self._client = None
        if client is not None:
            await client.close()
        if engine is not None:
            await asyncio.to_thread(engine.stop)
            await self._db(registry.ended, self.holder)

    async def _give_up(self, model: str, why: str) -> None:
        """End every batch that needs a model which can't be loaded."""
        waiting = await self._db(leases.waiting, timezone.now())
        batches = {batch.batch_id for batch in waiting if batch.model == model}
        batches |= {held.lease.batch_id for held in self._held if held.lease.model == model}
        for batch_id in sorted(batches):
            await self._db(leases.abort_model, batch_id, model, "model_load_failed", why)

    async def _engine_died(self, engine: EngineProcess, client: EngineClient) -> None:
        """Restart after a crash, with the lines that were in flight under suspicion."""
        model = engine.spec.name
        # Nothing may be started on a dead engine while its lines are sorted.
        self._engine = self._client = None
        # Their connections are gone, so these end by themselves, and put their lines among the suspects.
        tasks = [task for held in self._held for task in held.tasks]
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()
        await asyncio.to_thread(engine.stop)
        suspects = sorted(self._in_flight | self._trial, key=lambda line: (line.held.lease.shard_id, line.place.number))
        self._in_flight.clear()
        self._trial.clear()
        logger.warning("engine died", extra={"action": "engine_died", "model": model, "in_flight": len(suspects)})
        if len(suspects) == 1:
            self._culprits += 1
            line = suspects[0]
            self._finish(line, line.outcomes(Reply(0, b"", Failure.ENGINE_LOST), Usage(), 0))
        elif suspects:
            half = len(suspects) // 2
            self._suspects.extendleft([suspects[half:], suspects[:half]])
        if self._culprits >= MAX_CULPRITS:
            self._culprits = 0
            for batch_id in {held.lease.batch_id for held in self._held}:
                await self._db(leases.abort, batch_id, "engine_unavailable", "The engine keeps dying on this batch.")
        await self._db(registry.crashed, self.holder)
        self._loading = asyncio.create_task(self._load(model))

    # Lines.

    def _feed(self) -> None:
        """Start lines while there is room."""
        if self._client is None or self._engine is None:
            return
        if self._suspects or self._trial:
            if not self._in_flight and not self._trial:
                group = self._suspects.popleft()
                self._trial = set(group)
                for line in group:
                    self._start(line, self._engine, self._client)
            return
        while self._queue and len(self._in_flight) < IN_FLIGHT and not self.stopping:
            self._start(self._queue.popleft(), self._engine, self._client)

    def _start(self, line: Line, engine: EngineProcess, client: EngineClient) -> None:
        self._in_flight.add(line)
        task = asyncio.create_task(self._run_line(line, engine, client))
        line.held.tasks.add(task)
        task.add_done_callback(line.held.tasks.discard)

    async def _run_line(self, line: Line, engine: EngineProcess, client: EngineClient) -> None:
        """Run one line until it has a result, its engine dies, or its shard is dropped."""
        started = time.monotonic()
        try:
            try:
                body = line.read()
            except (OSError, msgspec.MsgspecError):
                self._finish(line, line.outcomes(Reply(0, b"", Failure.LINE_UNREADABLE), Usage(), 0))
                return
            while True:
                line.attempts += 1
                reply, usage = checked(await client.post(line.held.lease.endpoint, body))
                if reply.failure is Failure.CONNECTION_LOST and not await self._survives(engine):
                    line.attempts -= 1
                    self._wake.set()
                    return  # stays in flight, and so among the suspects
                if reply.failure is None or not reply.failure.is_retriable or line.attempts >= MAX_ATTEMPTS:
                    break
                await asyncio.sleep(BACKOFF_SECONDS * 2 ** (line.attempts - 1) * random.uniform(0.75, 1.25))  # noqa: S311
            if reply.failure is None:
                self._culprits = 0
            self._finish(line, line.outcomes(reply, usage, int((time.monotonic() - started) * 1000)))
        except asyncio.CancelledError:
            self._in_flight.discard(line)
            raise

    async def _survives(self, engine: EngineProcess) -> bool:
        """Return whether the engine lives after a lost connection; a dying one gets a moment to be gone."""
        for _ in range(10):
            if not engine.is_alive:
                return False
            await asyncio.sleep(0.05)
        return True

    def _finish(self, line: Line, outcomes: list[Outcome]) -> None:
        self._in_flight.discard(line)
        self._trial.discard(line)
        self._finished.extend((line.held, outcome) for outcome in outcomes)
        if len(self._finished) >= COMMIT_LINES:
            self._commit_due.set()
        self._feed()
        if len(self._queue) < IN_FLIGHT and not self._dry:
            self._wake.set()

    # Results.

    async def _commit_forever(self) -> None:
        while True:
            try:
                async with asyncio.timeout(COMMIT_SECONDS):
                    await self._commit_due.wait()
            except TimeoutError:
                pass
            self._commit_due.clear()
            await self._commit()

    async def _commit(self) -> None:
        """Write what is finished."""
        finished, self._finished = self._finished, []
        if not finished:
            return
        await self._db(_Commit([(held.lease, outcome) for held, outcome in finished]))
        for held, _ in finished:
            held.uncommitted -= 1
        for held in {held for held, _ in finished if held.uncommitted == 0}:
            if held in self._held:
                self._held.remove(held)
            held.close()

    # Beside the loop.

    async def _beat(self) -> None:
        await self._db(registry.beat, self.holder)

    async def _every(self, seconds: float, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            await step()
            await asyncio.sleep(seconds)

    async def _sweep_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 (spreads hosts apart)
            try:
                await loop.run_in_executor(self._background, _closing(sweep))
            except (DatabaseError, OSError):
                # Housekeeping that fails must not take the engine and the lines in flight with it.
                logger.exception("sweep failed", extra={"action": "sweep_failed"})

    async def _db(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function on the database's thread, again and again while the database is away."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self._database, _closing(function, *args))
            except (OperationalError, InterfaceError):
                logger.warning("database is away", extra={"action": "database_lost"})
                if self.stopping:
                    raise
                await asyncio.sleep(DATABASE_RETRY_SECONDS)

    async def _stop(self, committer: "asyncio.Task[None]", sides: Iterable["asyncio.Task[None]"]) -> None:
        """Let short lines finish, commit, release, and stop the engine, in this order."""
        self.stopping = True
        for task in sides:
            task.cancel()
        self._queue.clear()
        deadline = time.monotonic() + DRAIN_SECONDS
        while self._in_flight and self._loading is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        committer.cancel()
        await asyncio.gather(committer, *sides, return_exceptions=True)
        try:
            for held in list(self._held):
                await self._drop(held)
            await self._commit()
            await self._unload()
            await self._db(registry.stopped, self.holder)
        except (OperationalError, InterfaceError):
            logger.warning("stopped without a database; leases run out", extra={"action": "database_lost"})
            await self._unload_quietly()

    async def _unload_quietly(self) -> None:
        if self._engine is not None:
            await asyncio.to_thread(self._engine.stop)


def _closing(function: Callable[..., T], *args: Any) -> Callable[[], T]:
    """Return the call, which gives up its connection when the database fails it."""

    def call() -> T:
        try:
            return function(*args)
        except (OperationalError, InterfaceError):
            connections.close_all()
            raise

    return call


class _Commit:
    """One commit, which may be called again when the database's answer was lost."""

    def __init__(self, finished: list[tuple[leases.Lease, Outcome]]) -> None:
        self._finished = finished
        self._tried = False

    def __call__(self) -> None:
        _, first = self._finished[0]
        # All of a commit is one transaction, so its first row tells whether the lost answer was a yes.
        if self._tried and Result.objects.filter(batch_id=first.batch_id, line=first.line).exists():
            return
        self._tried = True
        leases.commit(self._finished)


class RunnerThread:
    """A runner in a thread of its own; its methods may be called from any thread."""

    def __init__(self, holder: str) -> None:
        self._holder = holder
        self._runner: Runner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_to_stop = False
        self._thread = threading.Thread(target=self._main, name="runner", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Make the runner look for work now."""
        if self._loop is not None and self._runner is not None:
            self._loop.call_soon_threadsafe(self._runner.wake)

    def stop(self) -> None:
        """Stop the runner and return when it has given everything back."""
        self._asked_to_stop = True
        if self._loop is not None and self._runner is not None and self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._runner.stop)
            except RuntimeError:
                return  # the loop closed in between
        self._thread.join()

    def _main(self) -> None:
        """Run, and run again after a fault: leases of the failed run expire or are released by it."""
        while not self._asked_to_stop:
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
                    self._loop = loop_runner.get_loop()
                    loop_runner.run(self._run())
            except Exception:
                logger.exception("runner failed; starting anew", extra={"action": "runner_failed"})
                time.sleep(DATABASE_RETRY_SECONDS)
            finally:
                connections.close_all()

    async def _run(self) -> None:
        self._runner = Runner(self._holder)
        if self._asked_to_stop:
            self._runner.stopping = True
        await self._runner.run()
