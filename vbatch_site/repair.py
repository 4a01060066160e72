"""Set right what an unclean end left behind, when the server starts: one line in the log for each. Rooms register."""

import logging
from collections.abc import Callable, Iterable

from django.db import DatabaseError

from vbatch_site import database

logger = logging.getLogger(__name__)

_repairs: list[Callable[[], Iterable[str]]] = []


def register(repair: Callable[[], Iterable[str]]) -> None:
    """Add a repair, which yields what it did; it is called while nothing of this home runs."""
    _repairs.append(repair)


def run() -> None:
    """Do all repairs. What can't be done now is left to the sweep."""
    for said in database.repairs:
        _say(said)
    for repair in _repairs:
        try:
            for said in repair():
                _say(said)
        except (DatabaseError, OSError):
            logger.exception("a repair failed", extra={"action": "repair_failed"})


def _say(said: str) -> None:
    logger.warning("repaired: %s", said, extra={"action": "repaired"})
