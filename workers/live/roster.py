"""Which models and engines there are, as one web process knows them, and waiting for an engine to run."""

import asyncio
import itertools
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Set
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, TypeVar

from django.db import InterfaceError, OperationalError, connections
from django.utils import timezone

from vbatch_site.openai.errors import ApiError
from workers.demand import LOAD_PAUSE, want
from workers.keys import engine_key
from workers.live.rows import Rows

T = TypeVar("T")

FRESH_SECONDS = 0.5  # for which what was read is believed while it names an engine
POLL_SECONDS = 0.25  # between two looks for an engine that is being started
WANT_SECONDS = 1.0  # between two notes that somebody still waits
AVOID_SECONDS = 1.0  # for which an engine that could not be reached is left alone
# After this silence of its worker an engine is taken for dead; workers give a sign of life every two seconds.
WORKER_SILENCE = 15
# What both SDKs obey: a longer one is not waited for.
MAX_RETRY_AFTER_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Engine:
    """One running engine."""

    service_id: int
    url: str
    key: str
    project_id: int | None = None  # whose own it is; None serves everybody


@dataclass(frozen=True, slots=True)
class Entry:
    """One model that can be asked for."""

    pk: int
    name: str
    endpoints: Set[str]
    load_seconds: float
    load_error: str
    load_failed_at: datetime | None
    enabled: bool = True
    engines: tuple[Engine, ...] = field(default=())

    def seen_by(self, project_id: int) -> "Entry | None":
        """Return the entry as a project sees it, None where it does not."""
        engines = tuple(engine for engine in self.engines if engine.project_id in (None, project_id))
        return replace(self, engines=engines) if self.enabled or engines else None


# Models that may be asked for by name, each with its running engines: a row for each engine, and one without any.
_READ = f"""
    SELECT m.id, m.name, m.endpoints, m.load_seconds, m.load_error, m.load_failed_at, m.enabled,
        s.id, s.url, s.project_id
    FROM workers_servedmodel m
    LEFT JOIN (workers_service s LEFT JOIN workers_worker w ON w.id = s.worker_id)
        ON s.model_id = m.id AND s.state = 'running' AND s.url <> ''
        AND (s.worker_id IS NULL OR (w.stopped_at IS NULL AND w.seen_at > now() - interval '{WORKER_SILENCE} s'))
    WHERE m.enabled OR s.id IS NOT NULL
    ORDER BY m.id, s.id
"""  # noqa: S608 (text of our own)


def _entries(rows: Iterable[tuple[Any, ...]]) -> dict[str, Entry]:
    """Return the statement's models by name."""
    found: dict[str, Entry] = {}
    for _, group in itertools.groupby(rows, key=lambda row: row[0]):
        listed = list(group)
        pk, name, endpoints, seconds, error, failed_at, enabled = listed[0][:7]
        engines = tuple(Engine(row[7], row[8], engine_key(row[7]), row[9]) for row in listed if row[7] is not None)
        found[name] = Entry(pk, name, frozenset(endpoints), seconds or 0.0, error, failed_at, enabled, engines)
    return found


class Roster:
    """The models and engines, read again when what is known is too old; belongs to one event loop."""

    def __init__(self, rows: Rows, executor: Executor) -> None:
        self._rows = rows
        self._executor = executor
        self._entries: dict[str, Entry] = {}
        self._read_at = -math.inf
        self._reading: asyncio.Task[None] | None = None
        self._turns: dict[str, Iterator[int]] = {}
        self._avoided: dict[int, float] = {}
        self._wanted_at: dict[int, float] = {}

    async def entry(self, model: str, endpoint: str, project_id: int) -> Entry:
        """Return the model's entry; raise ApiError when there is none, or it does not answer the endpoint."""
        await self._refresh(FRESH_SECONDS)
        entry = self._seen(model, project_id)
        if entry is None:
            await self._refresh(0)
            entry = self._seen(model, project_id)
        if entry is None:
            message = f"The model '{model[:200]}' does not exist"
            raise ApiError(message, param="model", code="model_not_found", http_status=404)
        if endpoint not in entry.endpoints:
            message = f"The model '{model}' does not answer '{endpoint}' on this server."
            raise ApiError(message, param="model", code="endpoint_not_supported")
        return entry

    def _seen(self, model: str, project_id: int) -> Entry | None:
        entry = self._entries.get(model)
        return entry.seen_by(project_id) if entry else None

    async def engine(self, model: str, endpoint: str, project_id: int, deadline: float) -> Engine:
        """Return the engine whose turn it is, waiting for one until the deadline on the monotonic clock.

        Raises ApiError: a 503 when none came, or when the model could not be loaded.
        """
        while True:
            entry = await self.entry(model, endpoint, project_id)
            if not entry.engines:
                await self._refresh(POLL_SECONDS / 2)
                entry = await self.entry(model, endpoint, project_id)
            found = self._turn(entry)
            if found is not None:
                return found
            pause = _load_pause(entry)
            if pause:
                raise _not_now(
                    f"The model '{model}' could not be loaded. {entry.load_error}", "model_load_failed", pause
                )
            if time.monotonic() >= deadline:
                message = f"The model '{model}' is not running yet. Please try again later."
                raise _not_now(message, "model_not_ready", entry.load_seconds or 10)
            if not entry.engines:
                await self._want(entry)
            await asyncio.sleep(POLL_SECONDS)

    def avoid(self, engine: Engine) -> None:
        """Leave an engine alone for a moment."""
        self._avoided[engine.service_id] = time.monotonic() + AVOID_SECONDS

    def _turn(self, entry: Entry) -> Engine | None:
        """Return the next of the entry's engines, None when there is none to use."""
        now = time.monotonic()
        if self._avoided:
            self._avoided = {pk: until for pk, until in self._avoided.items() if until > now}
        usable = [engine for engine in entry.engines if engine.service_id not in self._avoided]
        if not usable:
            return None
        turn = next(self._turns.setdefault(entry.name, itertools.count()))
        return usable[turn % len(usable)]

    async def _want(self, entry: Entry) -> None:
        now = time.monotonic()
        if now - self._wanted_at.get(entry.pk, -math.inf) >= WANT_SECONDS:
            self._wanted_at[entry.pk] = now
            await self.in_thread(want, entry.pk)

    def prepare(self) -> None:
        """Begin to read what a request will ask for, while its key is looked up."""
        if time.monotonic() - self._read_at > FRESH_SECONDS:
            self._begin_to_read()

    async def _refresh(self, max_age: float) -> None:
        """Read the rows unless they were read that lately; requests that need them at the same time read once."""
        if time.monotonic() - self._read_at > max_age:
            # Shielded: whoever goes away must not take the others' answer along.
            await asyncio.shield(self._begin_to_read())

    def _begin_to_read(self) -> "asyncio.Task[None]":
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            # Nobody may be left to hear of a fault; whoever needs the rows reads again.
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._reading

    async def _read(self) -> None:
        try:
            began = time.monotonic()
            self._entries = _entries(await self._rows.fetch(_READ))
            self._read_at = began
        finally:
            self._reading = None

    def in_thread(self, function: Callable[..., T], *args: object) -> Awaitable[T]:
        """Call what uses the database on one of a few threads, each of which keeps its connection."""
        return asyncio.get_running_loop().run_in_executor(self._executor, _call, function, args)


def _load_pause(entry: Entry) -> float:
    """Return the seconds in which a model that could not be loaded is not tried again."""
    if entry.load_failed_at is None or entry.engines:
        return 0.0
    left = entry.load_failed_at + LOAD_PAUSE - timezone.now()
    # A pause that has not begun yet is one of before the clock was set back.
    return max(0.0, left.total_seconds()) if left <= 2 * LOAD_PAUSE else 0.0


def _call(function: Callable[..., T], args: tuple[object, ...]) -> T:
    try:
        return function(*args)
    except (OperationalError, InterfaceError):
        # The database may have been restarted since this thread used it last; a second time it is away.
        connections.close_all()
    try:
        return function(*args)
    except (OperationalError, InterfaceError):
        connections.close_all()
        raise


def _not_now(message: str, code: str, seconds: float) -> ApiError:
    wait = str(max(1, min(MAX_RETRY_AFTER_SECONDS, math.ceil(seconds))))
    return ApiError(message, kind="server_error", code=code, http_status=503, headers={"retry-after": wait})
