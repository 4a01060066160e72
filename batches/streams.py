"""Send a batch's results as they come: pages of NDJSON, and server-sent events that last until the batch ends.

No stream holds a thread or a database connection while it waits: one query, twice a second, asks for all batches that
streams of this process wait for.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from weakref import WeakKeyDictionary

from asgiref.sync import SyncToAsync
from django.db import DatabaseError, connection

from batches.results import Numbered, Reader, Seen, look

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS = 0.5  # between two looks at the batches that are watched
KEEP_ALIVE_SECONDS = 15.0  # proxies cut what is silent for 30 or 60
RECONNECT_MILLISECONDS = 2000

# Reads are short; a few threads serve any number of streams.
_threads = ThreadPoolExecutor(4, thread_name_prefix="streams")


async def _in_thread(function: Callable[[], T]) -> T:
    def call() -> T:
        try:
            return function()
        finally:
            connection.close()

    return await asyncio.get_running_loop().run_in_executor(_threads, call)


def _let_go_of_thread() -> None:
    """Give back the thread that Django keeps for the length of a request; it makes another to end the request in."""
    context = SyncToAsync.thread_sensitive_context.get(None)
    executor = SyncToAsync.context_to_thread_executor.pop(context, None) if context else None
    if executor is not None:
        executor.shutdown(wait=False)


class _Watch:
    """Tells streams of one event loop when a batch has moved."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[asyncio.Future[Seen]]] = {}
        self._known: dict[asyncio.Future[Seen], Seen] = {}
        self._looking: asyncio.Task[None] | None = None

    async def moved(self, batch_id: str, known: Seen, seconds: float) -> Seen:
        """Return how far a batch is as soon as that is not what is known, or after so many seconds."""
        future: asyncio.Future[Seen] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(batch_id, set()).add(future)
        self._known[future] = known
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return known
        finally:
            del self._known[future]
            self._waiting[batch_id].discard(future)
            if not self._waiting[batch_id]:
                del self._waiting[batch_id]

    async def _look(self) -> None:
        while self._waiting:
            batch_ids = list(self._waiting)
            try:
                found = await _in_thread(lambda batch_ids=batch_ids: look(batch_ids))  # type: ignore[misc]
            except DatabaseError:
                logger.warning("results can't be watched", extra={"action": "watch_failed"})
                found = {}
            for batch_id, seen in found.items():
                for future in self._waiting.get(batch_id, ()):
                    if not future.done() and seen != self._known[future]:
                        future.set_result(seen)
            await asyncio.sleep(LOOK_SECONDS)


_watches: "WeakKeyDictionary[asyncio.AbstractEventLoop, _Watch]" = WeakKeyDictionary()


def _watch() -> _Watch:
    return _watches.setdefault(asyncio.get_running_loop(), _Watch())


async def ndjson(reader: Reader, after: int, last: int) -> AsyncIterator[bytes]:
    """Yield the lines after one position, up to another."""
    _let_go_of_thread()
    while after < last:
        lines, _ = await _in_thread(lambda: reader.read(after))  # noqa: B023 (awaited before `after` moves)
        lines = [line for line in lines if line.position <= last]
        if not lines:
            return
        yield b"".join(line for _, line in lines)
        after = lines[-1].position


async def events(reader: Reader, after: int) -> AsyncIterator[bytes]:
    """Yield the lines after a position as server-sent events, then `done` when the batch has ended."""
    _let_go_of_thread()
    yield b"retry: %d\n\n" % RECONNECT_MILLISECONDS
    known = Seen("", -1)
    while True:
        lines, ended = await _in_thread(lambda: reader.read(after))  # noqa: B023
        if lines:
            yield b"".join(map(_event, lines))
            after = lines[-1].position
        elif ended:
            break
        else:
            seen = await _watch().moved(reader.batch.pk, known, KEEP_ALIVE_SECONDS)
            if seen == known:
                yield b": still here\n\n"
            known = seen
    yield b"event: done\nid: %d\ndata: %b\n\n" % (after, json.dumps(await _in_thread(lambda: _end(reader))).encode())


def _event(line: Numbered) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (line.position, line.line.rstrip(b"\n"))


def _end(reader: Reader) -> dict[str, str | None]:
    batch = reader.batch
    batch.refresh_from_db(fields=["status", "output_file_id", "error_file_id"])
    return {
        "id": batch.pk,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
    }
