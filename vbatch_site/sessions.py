"""End sessions of the database whose process does nothing in the middle of a transaction: frozen, or cut off.

Nothing slow happens inside a transaction of ours. What one of them has locked, everybody else would wait for, and
Postgres itself waits without end for the rest of a COPY.
"""

import logging

from django.db import connection

STUCK_SECONDS = 5.0  # between two statements of one transaction; long beside any of ours, short beside a lease

logger = logging.getLogger(__name__)

# A dump that is being made or restored has another name, and so has a person's psql.
_END = """
    SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
     WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()
       AND application_name = current_setting('application_name') AND application_name <> ''
       AND wait_event = 'ClientRead' AND xact_start IS NOT NULL AND state <> 'idle'
       AND state_change < clock_timestamp() - make_interval(secs => %s)
"""


def end_stuck(seconds: float = STUCK_SECONDS) -> None:
    """Look once; what is ended was never committed, and a process that comes back begins again."""
    with connection.cursor() as cursor:
        cursor.execute(_END, [seconds])
        if count := cursor.fetchone()[0]:
            logger.warning("ended sessions that were stuck", extra={"action": "sessions_ended", "count": count})
