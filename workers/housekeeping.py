"""What runs beside a runner's loop: the sweep, so that batches end in time where no default cluster lives, a look for
sessions that are stuck with what the runner waits for, and the end of copies from a bucket."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from django.db import DatabaseError

from batches.sweep import sweep
from files import storage
from vbatch_site import sessions
from workers.database import closing

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 10.0
STUCK_LOOK_SECONDS = 2.0


async def every(seconds: float, step: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do a step again and again, with a rest between."""
    while True:
        await step()
        await asyncio.sleep(seconds)


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Return when an event has come, or the time is over."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def sweep_forever(executor: Executor) -> None:
    """Sweep again and again, on a thread of the executor, and look for stuck sessions on another thread."""
    # The sweep itself may wait for what they have locked.
    other = ThreadPoolExecutor(1, thread_name_prefix="runner-sessions")
    try:
        async with asyncio.TaskGroup() as sides:
            sides.create_task(_again(SWEEP_SECONDS, executor, sweep))
            sides.create_task(_again(SWEEP_SECONDS, executor, storage.drop_copies))
            sides.create_task(_again(STUCK_LOOK_SECONDS, other, sessions.end_stuck))
    finally:
        # A database that hangs must not hold up the end.
        other.shutdown(wait=False, cancel_futures=True)


async def _again(seconds: float, executor: Executor, function: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(seconds * random.uniform(0.8, 1.2))  # noqa: S311 (spreads hosts apart)
        try:
            await loop.run_in_executor(executor, closing(function))
        except (DatabaseError, OSError):
            # Housekeeping that fails must not take the engine and the lines in flight with it.
            logger.exception("housekeeping failed", extra={"action": "sweep_failed"})
