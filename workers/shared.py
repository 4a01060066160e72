"""A slot that shares its GPUs with services that people start on its host."""

import time
from typing import Any

from django.conf import settings

from workers import lending
from workers.attached import AttachedSlot
from workers.models import Launcher
from workers.scheduler import GIVE_WAY
from workers.slot import Database, NoServiceError, Slot

_LOOK_SECONDS = 1.0


class SharedSlot(Slot):
    """Gives its GPUs to services in turn with its models."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._asked_at = 0.0
        self._is_lent = False

    async def is_lent(self) -> bool:
        """Return whether a service has one of these GPUs, as of a second ago at most."""
        if self._gpus and time.monotonic() - self._asked_at >= _LOOK_SECONDS:
            self._asked_at = time.monotonic()
            since, self._is_lent = await self._db(lending.look, self._gpus)
            self.asked = {GIVE_WAY: since} if since is not None else {}
        return self._is_lent

    async def refresh(self) -> Slot:
        """Look whether the GPUs are lent; what feeds their services is the slot meanwhile."""
        if await self.is_lent() and self.engine is None:
            return Feeder(self, self._holder, self._environment, self._db)
        return self

    async def load(self, model: str) -> None:
        """Load a model, or give all GPUs up."""
        if model != GIVE_WAY:
            await super().load(model)
            return
        await self.put_away()
        await self._stop_sleepers()
        raise NoServiceError("The GPUs are for a service.", is_retriable=True)


class Feeder(AttachedSlot):
    """Feeds the services of a host for a slot that lent its GPUs."""

    def __init__(self, home: SharedSlot, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._home = home

    async def refresh(self) -> Slot:
        """Look how the service is, and whether the slot has its GPUs again."""
        await super().refresh()
        return self if self.engine is not None or await self._home.is_lent() else self._home

    async def blames_lines(self) -> bool:
        """Return False: a line that kills engines is found out on the slot's own, when nobody else's pays for it."""
        return False


def slot_for(holder: str, environment: dict[str, str], database: Database) -> Slot:
    """Return the slot of a runner: of this host's GPUs, or of what SLURM runs."""
    kind = AttachedSlot if settings.VBATCH_LAUNCHER == Launcher.SLURM else SharedSlot
    return kind(holder, environment, database)
