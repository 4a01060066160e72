"""django-q2's broker on our database, rung by Postgres: a task is seen when its transaction commits, not at a poll."""

import logging
import time
from typing import Any

import psycopg
from django.db import InterfaceError, OperationalError, connections
from django_q.brokers.orm import ORM
from django_q.conf import Conf
from psycopg import sql

# Between two looks while nothing rings: for tasks whose worker died, and where the connections go through a pooler
# that passes no notifications on. A cluster that is to stop notices it so late, too.
LOOK_SECONDS = 1.0
# Between two tries while the database is away; django-q2 itself would give up for ten seconds.
AWAY_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Broker(ORM):  # type: ignore[misc]  # django-q2 has no types
    """The ORM's queue; who puts a task into it notifies those who wait for one."""

    _listening: "psycopg.Connection[Any] | None" = None

    def enqueue(self, task: str) -> int:
        """Queue a task and ring; the bell is heard when the transaction commits, and not if it is rolled back."""
        number: int = super().enqueue(task)
        with connections[Conf.ORM].cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, '')", [_channel(self.list_key)])
        return number

    def dequeue(self) -> list[tuple[int, str]] | None:
        """Return tasks, or None after a ring, LOOK_SECONDS of silence, or a look at a database that is away."""
        try:
            # Heard from before the look on, so that what comes after the look is not missed.
            ears = self._listen()
            # Its own pause when it finds nothing is set to none, see Q_CLUSTER.
            tasks: list[tuple[int, str]] | None = super().dequeue()
            if not tasks:
                for _ in ears.notifies(timeout=LOOK_SECONDS, stop_after=1):
                    continue
            return tasks
        except (psycopg.OperationalError, OperationalError, InterfaceError):
            logger.warning("database is away", extra={"action": "database_lost"})
            connections.close_all()
            time.sleep(AWAY_SECONDS)
            return None

    def _listen(self) -> "psycopg.Connection[Any]":
        """Return the connection that looks and listens; Django may have replaced it since the last time."""
        # Closes one that is too old or broken, so that it is not replaced between here and the look.
        self.get_connection()
        connection = connections[Conf.ORM]
        connection.ensure_connection()
        if connection.connection is not self._listening:
            self._listening = connection.connection
            self._listening.execute(sql.SQL("LISTEN {}").format(sql.Identifier(_channel(self.list_key))))
        return self._listening


def _channel(list_key: str | None) -> str:
    return f"vbatch_{list_key or Conf.CLUSTER_NAME}"
