"""The sweep, run beside a runner's loop so that batches end in time where no default cluster lives."""

import asyncio
import logging
import random
from concurrent.futures import Executor

from django.db import DatabaseError

from batches.sweep import sweep
from workers.database import closing

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 10.0


async def sweep_forever(executor: Executor) -> None:
    """Sweep again and again, on a thread of the executor."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 (spreads hosts apart)
        try:
            await loop.run_in_executor(executor, closing(sweep))
        except (DatabaseError, OSError):
            # Housekeeping that fails must not take the engine and the lines in flight with it.
            logger.exception("sweep failed", extra={"action": "sweep_failed"})
