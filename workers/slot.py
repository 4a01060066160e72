"""An engine slot: the engine that is loaded in it, and those that sleep beside it.

A model is swapped by stopping its engine, or, where its catalogue entry starts vLLM with `--enable-sleep-mode`, by
putting it to sleep: the weights move to the host's memory, and waking takes seconds. Nothing runs on an engine that was
woken before its canary sings the same song.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings

from batches.demand import Waiting
from vbatch_site import clock
from workers import canary, machine, provenance, registry, traffic
from workers.client import EngineClient
from workers.engine import EngineError, EngineProcess, EngineSpec
from workers.keys import engine_key

logger = logging.getLogger(__name__)

LOAD_ATTEMPTS = 2
SLEEP_FLAG = "--enable-sleep-mode"
# Part of the host's memory that stays free of sleeping models' weights.
FREE_MEMORY = 0.1

# What live requests in flight get to end before their engine is swapped for another.
DRAIN_SECONDS = 60.0
# A web process believes for half a second what it read, and tells once a second what it has in flight.
DRAIN_LEAST_SECONDS = 1.6

Database = Callable[..., Awaitable[Any]]


class NoServiceError(EngineError):
    """No service of a model is there to be fed now; nobody's fault, and soon otherwise."""


@dataclass(eq=False, slots=True)
class Engine:
    """A running engine, the way to talk to it, and its row."""

    process: Any  # EngineProcess or AttachedEngine
    client: EngineClient
    row: int
    song: bytes | None = None  # the canary's answer after the cold load
    provenance: str = ""  # under which its facts are kept

    @property
    def model(self) -> str:
        """The model's name."""
        name: str = self.process.spec.name
        return name

    @property
    def can_sleep(self) -> bool:
        """Whether this engine can be put to sleep and trusted afterwards."""
        return self.song is not None and SLEEP_FLAG in self.process.spec.arguments

    async def sing(self) -> bytes | None:
        """Return the canary's answer, None when it has none."""
        request = canary.request(self.process.spec.endpoints, self.model)
        if request is None:
            return None
        reply = await self.client.post(*request)
        return reply.body if reply.failure is None else None


class Slot:
    """Loads, swaps and stops the engines of one runner."""

    serves_live = True  # an engine may be loaded for live requests alone

    def __init__(self, holder: str, environment: dict[str, str], database: Database) -> None:
        self.engine: Engine | None = None
        self.since: datetime = clock.now()
        self.asked: dict[str, datetime] = {}  # GIVE_WAY, since a service waits for this slot's GPUs
        self._holder = holder
        self._environment = environment
        self._gpus = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        self._db = database
        self._sleeping: dict[str, Engine] = {}  # the one that was used longest ago first

    @property
    def model(self) -> str | None:
        """The model that is loaded, None when none is."""
        return self.engine.model if self.engine else None

    @property
    def is_empty(self) -> bool:
        """Whether no engine runs or sleeps here."""
        return self.engine is None and not self._sleeping

    @property
    def is_closing(self) -> bool:
        """Whether it is too late to start lines on this engine."""
        return False

    @property
    def is_over(self) -> bool:
        """Whether what is in flight must be given up now."""
        return False

    async def refresh(self) -> "Slot":
        """Look how the engine is, which a child process does not need; return the slot to go on with."""
        return self

    async def reachable(self, waiting: Sequence[Waiting]) -> Sequence[Waiting]:
        """Return the work that this slot could take: any model can be loaded."""
        return waiting

    def took(self, seconds: float) -> None:
        """Learn from a line that is done."""

    async def blames_lines(self) -> bool:
        """Return whether a dead engine may have been killed by one of its lines."""
        return True

    async def load(self, model: str) -> None:
        """Make this model the loaded one; raise EngineError when it can't be."""
        await self.put_away()
        if model in self._sleeping and await self._wake(self._sleeping.pop(model)):
            return
        for attempt in range(1, LOAD_ATTEMPTS + 1):
            spec = await self._db(registry.spec_for, model, self._holder, self._environment)
            if spec is None:
                raise EngineError("The model was removed from the catalogue.", is_retriable=False)
            try:
                await self._start(spec)
                return
            except EngineError as error:
                if not error.is_retriable or attempt == LOAD_ATTEMPTS:
                    raise
                # What sleeps on the same GPU may be what was in the way.
                await self._stop_sleepers()

    async def _start(self, spec: EngineSpec) -> None:
        """Start an engine cold."""
        process = EngineProcess(spec)
        row = await self._db(registry.starting, spec.name, self._holder, process.url, self._gpus)
        if row is None:
            raise NoServiceError("Its GPUs are lent to a service.", is_retriable=True)
        process.api_key = engine_key(row)
        try:
            process.start()
            await process.wait_ready()
        except EngineError as error:
            process.stop()
            await self._db(registry.failed, row, str(error))
            logger.warning("engine failed to load", extra={"action": "load_failed", "model": spec.name})
            raise
        except asyncio.CancelledError:
            await asyncio.to_thread(process.kill)
            raise
        engine = Engine(process, EngineClient(process.url, process.api_key, settings.VBATCH_REQUEST_TIMEOUT), row)
        try:
            await self._introduce(engine)
        except BaseException:
            # Nobody has it in hand yet, so nobody else would stop it.
            await engine.client.close()
            await asyncio.to_thread(process.kill)
            raise
        logger.info("engine ready", extra={"action": "load", "model": spec.name, "seconds": process.load_seconds})
        self.engine, self.since = engine, clock.now()

    async def _introduce(self, engine: Engine) -> None:
        """Learn from an engine that answers what it is, and write it down."""
        process = engine.process
        if SLEEP_FLAG in process.spec.arguments:
            engine.song = await engine.sing()
        facts = await asyncio.to_thread(provenance.collect, process.spec, await engine.client.version())
        engine.provenance = await self._db(registry.known_as, engine.row, facts)
        await self._db(registry.ready, engine.row, process.load_seconds, process.pid, process.max_model_len)

    async def _wake(self, engine: Engine) -> bool:
        """Wake an engine and listen to its canary; a doubtful one is stopped, and False returned."""
        began = time.monotonic()
        woken = engine.process.is_alive and await engine.client.command("/wake_up")
        song = await engine.sing() if woken else None
        if song is None or engine.song is None or not canary.same(song, engine.song):
            why = "answers differently" if song else "did not wake up"
            logger.warning("engine not trusted after sleep", extra={"action": "wake_failed", "model": engine.model})
            await self._stop(engine, registry.failed, f"The engine {why} after its sleep.")
            return False
        seconds = time.monotonic() - began
        await self._db(registry.woke, engine.row, seconds)
        logger.info("engine awake", extra={"action": "wake", "model": engine.model, "seconds": round(seconds, 3)})
        self.engine, self.since = engine, clock.now()
        return True

    async def put_away(self) -> None:
        """Put the loaded engine to sleep where that is possible, and stop it otherwise."""
        engine, self.engine = self.engine, None
        if engine is None:
            return
        await self._drain(engine)
        if not engine.can_sleep or not await engine.client.command("/sleep?level=1"):
            await self._stop(engine, registry.ended)
            return
        await self._db(registry.slept, engine.row)
        logger.info("engine asleep", extra={"action": "sleep", "model": engine.model})
        self._sleeping[engine.model] = engine
        while self._sleeping and machine.free_memory() < FREE_MEMORY:
            await self._stop(self._sleeping.pop(next(iter(self._sleeping))), registry.ended)

    async def _drain(self, engine: Engine) -> None:
        """Let the live requests of an engine end; it gets no new ones."""
        if not await self._db(traffic.is_used, engine.row):
            return
        await self._db(registry.draining, engine.row)
        deadline = time.monotonic() + DRAIN_SECONDS
        # What web processes last knew is this old.
        await asyncio.sleep(DRAIN_LEAST_SECONDS)
        while time.monotonic() < deadline and await self._db(traffic.in_flight, engine.row):
            await asyncio.sleep(DRAIN_LEAST_SECONDS)

    async def clear(self) -> None:
        """Stop all engines, once live requests on them have ended: the GPU is free."""
        await self.put_away()
        await self._stop_sleepers()

    async def bury(self) -> None:
        """Clear away an engine that died."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await self._stop(engine, registry.failed, "The process died.")

    async def stop(self) -> None:
        """Stop all engines."""
        engine, self.engine = self.engine, None
        if engine is not None:
            await self._stop(engine, registry.ended)
        await self._stop_sleepers()

    async def stop_quietly(self) -> None:
        """Stop all engines without a word to the database."""
        engines = [*self._sleeping.values(), *([self.engine] if self.engine else [])]
        await asyncio.gather(*(asyncio.to_thread(engine.process.stop) for engine in engines))

    async def _stop_sleepers(self) -> None:
        while self._sleeping:
            await self._stop(self._sleeping.pop(next(iter(self._sleeping))), registry.ended)

    async def _stop(self, engine: Engine, note: Callable[..., None], *said: str) -> None:
        await engine.client.close()
        await asyncio.to_thread(engine.process.stop)
        await self._db(note, engine.row, *said)
