"""A few connections to the database that an event loop uses itself: a thread's turn costs more than a short query."""

from typing import Any

import psycopg
from django.db import OperationalError
from psycopg_pool import AsyncConnectionPool

from vbatch_site.env import env_str

# One for the key and one for the routes, which are asked at the same time.
LEAST_CONNECTIONS = 2
MOST_CONNECTIONS = 4
CONNECT_SECONDS = 5.0  # after which a database that is away is one


class Rows:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._pool = AsyncConnectionPool(
            env_str("DATABASE_URL"),
            kwargs={"autocommit": True, "application_name": "vbatch live"},
            min_size=LEAST_CONNECTIONS,
            max_size=MOST_CONNECTIONS,
            timeout=CONNECT_SECONDS,
            open=False,
            name="live",
        )

    async def fetch(self, statement: str, values: Any = None) -> list[tuple[Any, ...]]:
        """Return a statement's rows; raise Django's OperationalError when the database can't be asked.

        It may be sent twice.
        """
        if self._pool.closed:
            await self._pool.open()
        try:
            try:
                return await self._fetch(statement, values)
            except psycopg.OperationalError:
                # The database may have been restarted since the connections were used last; a second time it is away.
                await self._pool.check()
                return await self._fetch(statement, values)
        except psycopg.Error as error:
            raise OperationalError(str(error)) from error

    async def _fetch(self, statement: str, values: Any) -> list[tuple[Any, ...]]:
        async with self._pool.connection() as connection:
            return await (await connection.execute(statement, values)).fetchall()
