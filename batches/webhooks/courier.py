"""Send deliveries: a thread in each worker process of the default cluster, beside its task loop.

Receivers answer when they like. Here a hundred of them may hang without one task of the cluster waiting; the task
`deliver` is only the doorbell, and a lost one is made up for by the courier's own look at the database.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.conf import settings
from django.db import close_old_connections, connections

from batches.webhooks import deliveries
from batches.webhooks.client import Answer, Client
from batches.webhooks.deliveries import Attempt

logger = logging.getLogger(__name__)

T = TypeVar("T")

IN_FLIGHT = 64  # attempts at a time, in one process
# Threads for names. A look-up of a dead one may go on for three times as long as the attempt that asked for it.
LOOK_UPS = 4 * IN_FLIGHT
LOOK_SECONDS = 15.0  # between two looks at the database when no doorbell rings
DRAIN_SECONDS = 4.0  # what attempts in flight get to finish when the process is asked to stop
RESTART_SECONDS = 1.0  # before a courier that failed starts anew


class Courier:
    """Sends what is due until it is stopped."""

    def __init__(self) -> None:
        self.stopping = False
        self._wake = asyncio.Event()
        self._database = ThreadPoolExecutor(1, thread_name_prefix="courier-db")
        self._in_flight: dict[asyncio.Task[None], Attempt] = {}

    async def run(self) -> None:
        """Work until asked to stop."""
        # A look-up of a dead name occupies a thread for long; asyncio's own few would be all taken by two such names.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(LOOK_UPS, "courier-dns"))
        allow_private = settings.VBATCH_WEBHOOK_ALLOW_PRIVATE
        async with Client(settings.VBATCH_WEBHOOK_TIMEOUT, allow_private=allow_private) as client:
            try:
                while not self.stopping:
                    self._wake.clear()
                    await self._wait(await self._step(client))
            finally:
                await self._drain()

    def wake(self) -> None:
        """Look now; call on the loop's thread."""
        self._wake.set()

    async def _step(self, client: Client) -> float:
        """Start what can be started; return for how many seconds there is nothing more to start."""
        free = IN_FLIGHT - len(self._in_flight)
        if not free:
            return LOOK_SECONDS
        hosts = Counter(attempt.host for attempt in self._in_flight.values())
        claimed = await self._db(deliveries.claim, free, hosts)
        for attempt in claimed:
            task = asyncio.create_task(self._make(client, attempt))
            self._in_flight[task] = attempt
            task.add_done_callback(self._done)
        if claimed:
            return 0.0
        # What is due already waits for its host, and a finished attempt wakes us.
        due = await self._db(deliveries.seconds_to_next)
        return min(due, LOOK_SECONDS) if due else LOOK_SECONDS

    async def _make(self, client: Client, attempt: Attempt) -> None:
        if attempt.error:
            answer = Answer(0, 0, error=attempt.error)
        else:
            answer = await client.post(attempt.url, attempt.body, attempt.headers)
        await self._db(deliveries.finish, attempt, answer)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._in_flight.pop(task, None)
        self._wake.set()
        if not task.cancelled() and (fault := task.exception()):
            # Its claim runs out, and it is tried again.
            logger.error("webhook attempt lost", extra={"action": "webhook_lost"}, exc_info=fault)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _drain(self) -> None:
        """Let attempts in flight finish, for a while; give back those that don't."""
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=DRAIN_SECONDS)
        broken_off = dict(self._in_flight)
        for task in broken_off:
            task.cancel()
        await asyncio.gather(*broken_off, return_exceptions=True)
        try:
            await self._db(deliveries.give_back, list(broken_off.values()))
        finally:
            await self._db(connections.close_all)
            self._database.shutdown(wait=False)

    async def _db(self, function: Callable[..., T], *arguments: Any) -> T:
        def call() -> T:
            close_old_connections()
            return function(*arguments)

        return await asyncio.get_running_loop().run_in_executor(self._database, call)


class CourierThread:
    """A courier in a thread of its own; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._courier: Courier | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_to_stop = False
        self._thread = threading.Thread(target=self._main, name="courier", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Make the courier look for work now."""
        self._call(Courier.wake)

    def stop(self) -> None:
        """Stop the courier and return when nothing of it is in flight."""
        self._asked_to_stop = True
        self._call(_stop)
        self._thread.join()

    def _call(self, what: Callable[[Courier], None]) -> None:
        if self._loop is None or self._courier is None or not self._thread.is_alive():
            return
        try:
            self._loop.call_soon_threadsafe(what, self._courier)
        except RuntimeError:
            return  # the loop closed in between

    def _main(self) -> None:
        """Run, and run again after a fault: what was claimed comes up again by itself."""
        while not self._asked_to_stop:
            try:
                with asyncio.Runner() as runner:
                    self._loop = runner.get_loop()
                    runner.run(self._run())
            except Exception:
                logger.exception("courier failed; starting anew", extra={"action": "courier_failed"})
                time.sleep(RESTART_SECONDS)

    async def _run(self) -> None:
        self._courier = Courier()
        self._courier.stopping = self._asked_to_stop
        await self._courier.run()


def _stop(courier: Courier) -> None:
    courier.stopping = True
    courier.wake()
