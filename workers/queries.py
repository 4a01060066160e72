"""Queries of a runner: on one thread beside its loop, so that a slow one never keeps the engine waiting."""

import asyncio
import logging
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from django.db import DatabaseError, InterfaceError, OperationalError, connections

from batches.sweep import sweep

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 1.0  # between two attempts while the database is away
SWEEP_SECONDS = 10.0


class Database:
    """Calls functions that use the database, one at a time."""

    def __init__(self, is_ending: Callable[[], bool]) -> None:
        self._is_ending = is_ending
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runner-db")

    async def __call__(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function, again and again while the database is away and the runner does not end."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self._thread, _closing(function, *args))
            except (OperationalError, InterfaceError):
                logger.warning("database is away", extra={"action": "database_lost"})
                if self._is_ending():
                    raise
                await asyncio.sleep(RETRY_SECONDS)


async def sweep_forever() -> None:
    """Do the repairs by the clock, on a thread of their own."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, thread_name_prefix="runner-sweep")
    while True:
        await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 (spreads hosts apart)
        try:
            await loop.run_in_executor(thread, _closing(sweep))
        except (DatabaseError, OSError):
            # Housekeeping that fails must not take the engine and the lines in flight with it.
            logger.exception("sweep failed", extra={"action": "sweep_failed"})


def _closing(function: Callable[..., T], *args: Any) -> Callable[[], T]:
    """Return the call, which gives up its connection when the database fails it."""

    def call() -> T:
        try:
            return function(*args)
        except (OperationalError, InterfaceError):
            connections.close_all()
            raise

    return call
