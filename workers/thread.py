"""A runner in a thread of its own, beside the task loop of its process."""

import asyncio
import logging
import threading
import time

import uvloop
from django.conf import settings
from django.db import connections

from workers import registry
from workers.devices import NoSlotError, SlotLock
from workers.runner import Runner

logger = logging.getLogger(__name__)

RESTART_SECONDS = 1.0  # between a runner that failed and the next


class RunnerThread:
    """A runner in a thread of its own; its methods may be called from any thread."""

    def __init__(self, holder: str) -> None:
        self._holder = holder
        self._slot: SlotLock | None = None
        self._runner: Runner | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asked_to_stop = False
        self._thread = threading.Thread(target=self._main, name="runner", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Make the runner look for work now."""
        if self._loop is not None and self._runner is not None:
            self._loop.call_soon_threadsafe(self._runner.wake)

    def stop(self) -> None:
        """Stop the runner and return when it has given everything back."""
        self._asked_to_stop = True
        if self._loop is not None and self._runner is not None and self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._runner.stop)
            except RuntimeError:
                return  # the loop closed in between
        self._thread.join()

    def _main(self) -> None:
        """Run, and run again after a fault: leases of the failed run expire or are released by it."""
        while not self._asked_to_stop:
            try:
                self._slot = self._slot or SlotLock(
                    settings.VBATCH_HOME / "slots", settings.VBATCH_GPU_WORKERS, self._holder
                )
                # Whoever ran in this slot before is dead, also where that was an earlier runner of this process.
                registry.bury({self._holder, self._slot.predecessor})
                connections.close_all()
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop_runner:
                    self._loop = loop_runner.get_loop()
                    loop_runner.run(self._run(self._slot))
            except NoSlotError:
                # A predecessor that is still being stopped has it, or another command that works on the same home.
                time.sleep(RESTART_SECONDS)
            except Exception:
                logger.exception("runner failed; starting anew", extra={"action": "runner_failed"})
                time.sleep(RESTART_SECONDS)
            finally:
                connections.close_all()

    async def _run(self, slot: SlotLock) -> None:
        self._runner = Runner(self._holder, slot.environment())
        if self._asked_to_stop:
            self._runner.stopping = True
        await self._runner.run()
