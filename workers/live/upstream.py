"""Connections from one web process to engines."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp

from workers.live.pulse import Beat, Pulse
from workers.live.roster import Engine

CONNECT_SECONDS = 5.0
# Less than the five seconds after which vLLM closes an idle connection: one that is just being closed loses a request.
KEEP_ALIVE_SECONDS = 3.0
_EVENTS = "text/event-stream"


class Unreached(Exception):
    """The engine did not take the request, so another one may."""


class Lost(Exception):
    """The connection broke after the request was sent; the engine may have worked on it."""


class TooSlow(Exception):
    """The engine did not answer in time."""


class Answer:
    """What an engine answered: a whole body, or the beginning of a stream that is read to its end or closed."""

    def __init__(self, response: aiohttp.ClientResponse, first: bytes, is_stream: bool, beat: Beat) -> None:
        self._response = response
        self._beat = beat
        self.status = response.status
        self.kind = response.headers.get("Content-Type", "application/json")
        self.first = first
        self.is_stream = is_stream

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield what follows the first bytes as it comes; raise Lost when the stream breaks off."""
        self._time(self.first)
        try:
            async for chunk in self._response.content.iter_any():
                self._time(chunk)
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Lost(str(error)) from None

    def close(self) -> None:
        """Close the connection unless all was read: the engine then aborts the request."""
        self._response.close()
        self._beat.over()

    def _time(self, chunk: bytes) -> None:
        # A stream of the Responses API begins with events that no token was computed for.
        if not self._beat.is_timed and (b"event: response." not in chunk or b".delta" in chunk):
            self._beat.first_token()


class Upstream:
    """The connections; belongs to one event loop."""

    def __init__(self, timeout_seconds: float, pulse: Pulse) -> None:
        self._pulse = pulse
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=timeout_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )

    async def send(self, engine: Engine, path: str, body: bytes, request_id: str) -> Answer:
        """Send a request and return the answer once its first bytes are here; raise Unreached, Lost or TooSlow."""
        beat = self._pulse.began(engine.service_id)
        try:
            return await self._send(engine, path, body, request_id, beat)
        except BaseException as error:
            beat.over()
            match error:
                case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
                    raise Unreached(str(error)) from None
                case TimeoutError():
                    raise TooSlow from None
                case aiohttp.ClientError() | OSError() | asyncio.IncompleteReadError():
                    raise Lost(str(error)) from None
            raise

    async def _send(self, engine: Engine, path: str, body: bytes, request_id: str, beat: Beat) -> Answer:
        headers = {"Authorization": f"Bearer {engine.key}", "Content-Type": "application/json"}
        headers["X-Request-Id"] = request_id
        response = await self._session.post(engine.url + path, data=body, headers=headers)
        try:
            if response.status in (401, 403, 503):
                # It is starting, asleep, or not ours: nothing was computed.
                raise Unreached(f"status {response.status}")
            is_stream = response.content_type == _EVENTS
            # The head of a stream comes long before its first token, so it says nothing about the engine's health.
            first = await response.content.readany() if is_stream else await response.read()
            return Answer(response, first, is_stream, beat)
        except BaseException:
            response.close()
            raise
