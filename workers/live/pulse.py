"""What this process sees of each engine's live requests, written down for the runners at most once a second."""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from django.db import DatabaseError

from workers import traffic
from workers.admission import KEPT_SAMPLES, WINDOW_SECONDS

logger = logging.getLogger(__name__)

WRITE_SECONDS = 1.0  # between two notes; the first request after a silence is noted at once


@dataclass(slots=True)
class _Seen:
    in_flight: int = 0
    is_told: bool = False  # written down as it is
    first_tokens: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))


class Pulse:
    """Counts and times requests; belongs to one event loop."""

    def __init__(self, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._in_thread = in_thread
        self._name = f"{socket.gethostname()[:40]}-{os.getpid()}-{os.urandom(3).hex()}"
        self._engines: dict[int, _Seen] = {}
        self._writing: asyncio.Task[None] | None = None

    def began(self, service_id: int) -> "Beat":
        """Count a request that is sent to an engine."""
        seen = self._engines.setdefault(service_id, _Seen())
        seen.in_flight += 1
        seen.is_told = False
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        return Beat(seen)

    async def _write(self) -> None:
        """Write while there is anything to say."""
        try:
            while self._engines:
                for service_id, seen in list(self._engines.items()):
                    while seen.first_tokens and seen.first_tokens[0][0] < time.time() - WINDOW_SECONDS:
                        seen.first_tokens.popleft()
                    if not seen.in_flight and seen.is_told:
                        del self._engines[service_id]
                        continue
                    seen.is_told = True
                    pairs = list(seen.first_tokens)
                    await self._in_thread(traffic.write, service_id, self._name, seen.in_flight, pairs)
                await asyncio.sleep(WRITE_SECONDS)
        except DatabaseError:
            # An engine's row may have gone, or the database: the next request begins anew.
            logger.warning("live traffic was not noted", extra={"action": "live_traffic_failed"})
            self._engines.clear()
        finally:
            self._writing = None


class Beat:
    """One request in flight."""

    def __init__(self, seen: _Seen) -> None:
        self._seen = seen
        self._sent_at = time.monotonic()
        self.is_timed = self._is_over = False

    def first_token(self) -> None:
        """Note that the first token came; further calls say nothing."""
        if not self.is_timed:
            self.is_timed = True
            self._seen.first_tokens.append((time.time(), time.monotonic() - self._sent_at))
            self._seen.is_told = False

    def over(self) -> None:
        """Note that the request is no longer in the engine."""
        if not self._is_over:
            self._is_over = True
            self._seen.in_flight -= 1
            self._seen.is_told = False
