"""A network between a worker and a service that can be cut: a TCP relay on loopback."""

import asyncio
import threading
from contextlib import suppress
from typing import Self

_BLOCK = 1 << 16  # bytes

OPEN, CUT, STALLED = "open", "cut", "stalled"


class Relay:
    """Passes connections on to a port, or breaks them and refuses new ones, or lets nothing through."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._ready = threading.Event()
        self._flows = asyncio.Event()
        self._is_cut = False
        self._connections: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def set(self, state: str) -> None:
        """Become open, cut or stalled."""
        self._loop.call_soon_threadsafe(self._set, state)

    def _set(self, state: str) -> None:
        self._is_cut = state == CUT
        if state == STALLED:
            self._flows.clear()
        else:
            self._flows.set()
        if self._is_cut:
            for task in self._connections:
                task.cancel()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._flows.set()
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        there: asyncio.StreamWriter | None = None
        try:
            if self._is_cut:
                return
            back, there = await asyncio.open_connection("127.0.0.1", self._target)
            await asyncio.gather(self._pass(reader, there), self._pass(back, writer))
        except (OSError, asyncio.CancelledError):
            return
        finally:
            self._connections.discard(task)
            for end in (writer, there):
                if end is not None:
                    with suppress(OSError):
                        # Reset, as a lost network does it: no goodbye to either side.
                        end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_BLOCK):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        writer.transport.abort()
