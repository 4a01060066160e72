"""A runner's slot without an engine of its own: it feeds running services that a launcher started, one at a time."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from batches.demand import Waiting
from vbatch_site import clock
from workers import services
from workers.client import EngineClient
from workers.engine import EngineSpec
from workers.launchers import Phase, end_of
from workers.slot import Database, Engine, NoServiceError, Slot

logger = logging.getLogger(__name__)

# Before its time limit ends a service, what is in flight is given up and goes to another.
LAST_MOMENT = timedelta(seconds=4)
# Lines are taken to need this many times what the slowest of late took.
LINE_FACTOR = 1.5
_FORGETTING = 0.995  # of the slowest line's time, with each line that is done
WORD_SECONDS = 6.0  # that an engine which died gets to leave word of it
AVOID_SECONDS = 8.0  # for which a service that was lost is not fed again
_POLL_SECONDS = 0.5
_REFRESH_SECONDS = 0.5


class AttachedEngine:
    """A service that is fed, with what runners ask of an engine's process."""

    def __init__(self, row: services.Fed) -> None:
        self.spec = EngineSpec(row.model, row.model, (), "vllm", Path(), tuple(row.endpoints))
        self.url, self.api_key = row.url, row.key
        self.ends_at = row.ends_at
        self.folder = row.folder
        self.project_id = row.project_id
        self.is_alive = True
        self.came_back = False  # it was the network
        self.client = EngineClient(row.url, row.key, settings.VBATCH_REQUEST_TIMEOUT)

    async def survives(self) -> bool:
        """Return whether the service still answers after a lost connection."""
        if self.is_alive and not await self.client.is_healthy():
            self.is_alive = False
        return self.is_alive

    def stop(self) -> None:
        """Do nothing: the service goes on."""


class AttachedSlot(Slot):
    """Attaches to services, and lets go of them in time."""

    serves_live = False

    def __init__(self, holder: str, environment: dict[str, str], database: Database) -> None:
        super().__init__(holder, environment, database)
        self._slowest = 0.0  # seconds that a line took of late
        self._looked_at = 0.0
        self._projects: dict[str, set[int]] = {}  # that have work, by model
        self._avoid: dict[int, float] = {}  # services that were lost, and until when they are left alone
        self._needed = False  # lines are in hand that only this model's engine can clear of suspicion

    async def load(self, model: str) -> None:
        """Attach to a running service of the model; raise NoServiceError when there is none."""
        await self.put_away()
        while True:
            row = await self._db(services.attach, model, self._projects.get(model, ()), self._holder, self._avoided())
            if row is not None:
                break
            if not self._needed or not await self._db(services.is_wanted, model):
                self._needed = False
                raise NoServiceError(f"No service of {model} is free.", is_retriable=True)
            await asyncio.sleep(_POLL_SECONDS)
        self._needed = False
        self._slowest = 0.0
        process = AttachedEngine(row)
        self.engine, self.since = Engine(process, process.client, row.pk), clock.now()
        logger.info("service attached", extra={"action": "attach", "model": model, "service": row.job_id})

    async def refresh(self) -> Slot:
        """Look how the service is."""
        engine = self.engine
        if engine is None or time.monotonic() - self._looked_at < _REFRESH_SECONDS:
            return self
        self._looked_at = time.monotonic()
        row = await self._db(services.look, engine.row, self._holder)
        if row is None:
            engine.process.is_alive = False
        else:
            engine.process.ends_at = row.ends_at
        return self

    async def reachable(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Return the work for the attached service and for those that are free; a project's is for its own only."""
        found: set[tuple[str, int | None]] = await self._db(services.free, self._avoided())
        if self.engine is not None:
            # While one is attached, another of the same model is for other workers.
            found = {(model, project_id) for model, project_id in found if model != self.model}
            found.add((self.engine.model, self.engine.process.project_id))
        self._projects = defaultdict(set)
        for work in waiting:
            self._projects[work.model].add(work.project_id)
        return [work for work in waiting if {(work.model, None), (work.model, work.project_id)} & found]

    @property
    def last_start(self) -> datetime | None:
        """When the last line may be started that still ends before the service does."""
        ends_at = self.engine.process.ends_at if self.engine is not None else None
        return ends_at - LAST_MOMENT - timedelta(seconds=self._slowest * LINE_FACTOR) if ends_at else None

    @property
    def is_closing(self) -> bool:
        """Whether it is too late to start lines."""
        last = self.last_start
        return last is not None and timezone.now() >= last

    @property
    def is_over(self) -> bool:
        """Whether what is in flight must be given up now."""
        ends_at = self.engine.process.ends_at if self.engine is not None else None
        return ends_at is not None and timezone.now() >= ends_at - LAST_MOMENT

    def took(self, seconds: float) -> None:
        """Learn from a line that is done."""
        self._slowest = max(seconds, self._slowest * _FORGETTING)

    async def blames_lines(self) -> bool:
        """Return whether the engine died by itself, and not with its job: then a line may have killed it."""
        engine = self.engine
        deadline = time.monotonic() + WORD_SECONDS
        while engine is not None and time.monotonic() < deadline:
            end = end_of(engine.process.folder)
            if end is not None:
                self._needed = end.phase is Phase.FAILED
                return self._needed
            if await self._db(services.look, engine.row, self._holder) is None:
                return False
            engine.process.came_back = await engine.client.is_healthy()
            if engine.process.came_back:
                return False
            await asyncio.sleep(_POLL_SECONDS)
        return False

    async def put_away(self) -> None:
        """Let go of the service; it goes on."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await engine.client.close()
            await self._db(services.detach, engine.row, self._holder)

    async def bury(self) -> None:
        """Let go of a service that died."""
        if self.engine is not None and not self.engine.process.came_back:
            # Until those who watch it have seen what became of it.
            self._avoid[self.engine.row] = time.monotonic() + AVOID_SECONDS
        await self.put_away()

    def _avoided(self) -> list[int]:
        now = time.monotonic()
        self._avoid = {row: until for row, until in self._avoid.items() if until > now}
        return list(self._avoid)

    async def stop(self) -> None:
        """Let go of the service."""
        await self.put_away()

    async def stop_quietly(self) -> None:
        """Let go without a word to the database: a silent worker's service is free for others."""
        if self.engine is not None:
            await self.engine.client.close()
