"""Call functions that use the database from an event loop: on a thread, and again while the database is away."""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError, connections

logger = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 1.0


async def call(executor: Executor, is_stopping: Callable[[], bool], function: Callable[..., T], *args: Any) -> T:
    """Return what a function returns; a database that is away is waited for, unless all is stopping."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return await loop.run_in_executor(executor, closing(function, *args))
        except (OperationalError, InterfaceError):
            logger.warning("database is away", extra={"action": "database_lost"})
            if is_stopping():
                raise
            await asyncio.sleep(RETRY_SECONDS)


def closing(function: Callable[..., T], *args: Any) -> Callable[[], T]:
    """Return the call, which gives up its connection when the database fails it."""

    def run() -> T:
        try:
            return function(*args)
        except (OperationalError, InterfaceError):
            connections.close_all()
            raise

    return run
