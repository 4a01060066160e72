"""Requests to one engine over connections that are kept. Pure: no Django.

One request at a time on each connection, the answer whole, nothing of HTTP but what an engine speaks: with a general
client these two steps were half of what a line costs this process.
"""

import asyncio
import time
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

CONNECT_SECONDS = 30.0
# Less than the five seconds after which vLLM closes an idle connection: one that is just being closed loses a request.
KEEP_ALIVE_SECONDS = 3.0
# The longest answer: a row of the database takes four times as much, and an engine without an end must not take all
# memory.
MOST_BYTES = 256 << 20


class Lost(Exception):
    """No whole answer came: the connection broke, or what came over it is no HTTP."""


class _Connection(asyncio.Protocol):
    """One connection; httptools calls the methods that begin with on_."""

    def __init__(self, forget: "Callable[[_Connection], None]") -> None:
        self._forget = forget
        self._transport: asyncio.Transport | None = None
        self._parser = HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._size = 0  # of them, in bytes
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self.is_reusable = False
        self.used_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are of no class of asyncio's

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            self._fail(Lost(str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(Lost(str(error or "closed")))

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > MOST_BYTES:
            self._fail(Lost("an answer without an end"))

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return  # it only says that the answer will come
        if self._answer is None or self._answer.done():
            self._fail(Lost("an answer to nothing"))
            return
        self.is_reusable = self._parser.should_keep_alive()
        self._answer.set_result((status, self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)))

    async def ask(self, request: bytes, seconds: float) -> tuple[int, bytes]:
        """Send a request and return the answer's status and body; raise Lost or TimeoutError, and close."""
        assert self._transport is not None  # noqa: S101 (for the type checker)
        loop = asyncio.get_running_loop()
        self.is_reusable = False
        self._parts, self._size = [], 0
        self._answer = loop.create_future()
        timer = loop.call_later(seconds, self._fail, TimeoutError())
        try:
            self._transport.write(request)
            return await self._answer
        finally:
            timer.cancel()
            self._answer = None
            if not self.is_reusable:
                # An engine aborts what it still works on for a connection that closes.
                self.close()

    def close(self) -> None:
        """Close at once."""
        self.is_reusable = False
        self._forget(self)
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, error: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()


class Connections:
    """All connections to one engine; for one event loop."""

    def __init__(self, base_url: str, api_key: str, timeout_seconds: float) -> None:
        url = urlsplit(base_url)
        self._host, self._port = url.hostname or "", url.port or 80  # nobody speaks TLS to an engine
        self._seconds = timeout_seconds
        self._head = (
            f"Host: {url.netloc}\r\nAuthorization: Bearer {api_key}\r\n"
            "Content-Type: application/json\r\nAccept: */*\r\nContent-Length: "
        )
        self._all: set[_Connection] = set()
        self._idle: dict[_Connection, None] = {}  # the one that was used last is at the end

    async def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Send a request and return the answer's status and body; raise Lost, OSError or TimeoutError.

        When the caller is cancelled, the connection is closed, which aborts the request in the engine.
        """
        connection = self._take() or await self._connect()
        head = f"POST {path} HTTP/1.1\r\n{self._head}{len(body)}\r\n\r\n"
        answer = await connection.ask(head.encode() + body, self._seconds)
        if connection.is_reusable:
            connection.used_at = time.monotonic()
            self._idle[connection] = None
        return answer

    def close(self) -> None:
        """Close all connections; a request in flight is lost."""
        for connection in list(self._all):
            connection.close()

    def _forget(self, connection: _Connection) -> None:
        self._all.discard(connection)
        self._idle.pop(connection, None)

    def _take(self) -> _Connection | None:
        while self._idle:
            connection, _ = self._idle.popitem()
            if time.monotonic() - connection.used_at < KEEP_ALIVE_SECONDS:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, connection = await loop.create_connection(lambda: _Connection(self._forget), self._host, self._port)
        except TimeoutError:
            # A host without power refuses nothing; its engine did not get the request.
            raise Lost("no connection") from None
        self._all.add(connection)
        return connection
