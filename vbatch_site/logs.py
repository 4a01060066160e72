"""Log lines as JSON objects, and the ids that a line gets from where it is written. Pure: no Django."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

_about: ContextVar[dict[str, str] | None] = ContextVar("about", default=None)
_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


@contextmanager
def about(**ids: str) -> Iterator[None]:
    """Give every line that is logged in the block these ids."""
    token = _about.set({**(_about.get() or {}), **ids})
    try:
        yield
    finally:
        _about.reset(token)


class JsonLines(logging.Formatter):
    """One JSON object a line: `at`, `level`, `logger`, `message`, the ids, what was given as `extra`, `error`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without its newline."""
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **(_about.get() or {}),
            **extra,
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        # Django's own records carry objects, such as a request.
        return json.dumps(line, default=str, ensure_ascii=False)
