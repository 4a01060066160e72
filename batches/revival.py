"""When a worker of the default cluster begins, it rings for what a dead predecessor may have had in hand.

django-q2 gives a task to nobody else for as long as the longest one may take, and cannot know that a worker was killed.
"""

import logging
import threading
from datetime import timedelta
from typing import Any

from django.db import DatabaseError, connections

from batches.sweep import ring_again

logger = logging.getLogger(__name__)

# Batches that were rung for just now are in other hands: workers that begin together ring once.
PATIENCE = timedelta(seconds=0.5)


def ring_at_start(**_: Any) -> None:
    """Ring if this process is a worker of the default cluster; return at once."""
    from django_q.conf import Conf

    if Conf.CLUSTER_NAME == "default":
        threading.Thread(target=_ring, name="revival", daemon=True).start()


def _ring() -> None:
    try:
        ring_again(PATIENCE)
    except DatabaseError:
        logger.warning("database is away; the sweep will ring", extra={"action": "database_lost"})
    finally:
        connections.close_all()
