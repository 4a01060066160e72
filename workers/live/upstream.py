"""Connections from one web process to engines."""

import asyncio
from collections.abc import AsyncIterator

import aiohttp

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

    def __init__(self, response: aiohttp.ClientResponse, first: bytes, is_stream: bool) -> None:
        self._response = response
        self.status = response.status
        self.kind = response.headers.get("Content-Type", "application/json")
        self.first = first
        self.is_stream = is_stream

    async def rest(self) -> AsyncIterator[bytes]:
        """Yield what follows the first bytes as it comes; raise Lost when the stream breaks off."""
        try:
            async for chunk in self._response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Lost(str(error)) from None

    def close(self) -> None:
        """Close the connection unless all was read: the engine then aborts the request."""
        self._response.close()


class Upstream:
    """The connections; belongs to one event loop."""

    def __init__(self, timeout_seconds: float) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=timeout_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),
        )

    async def send(self, engine: Engine, path: str, body: bytes, request_id: str) -> Answer:
        """Send a request and return the answer once its first bytes are here; raise Unreached, Lost or TooSlow."""
        headers = {"Authorization": f"Bearer {engine.key}", "Content-Type": "application/json"}
        headers["X-Request-Id"] = request_id
        try:
            response = await self._session.post(engine.url + path, data=body, headers=headers)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreached(str(error)) from None
        except TimeoutError:
            raise TooSlow from None
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            raise Lost(str(error)) from None
        try:
            if response.status in (401, 403, 503):
                # It is starting, asleep, or not ours: nothing was computed.
                raise Unreached(f"status {response.status}")
            is_stream = response.content_type == _EVENTS
            # The head of a stream comes long before its first token, so it says nothing about the engine's health.
            first = await response.content.readany() if is_stream else await response.read()
            return Answer(response, first, is_stream)
        except TimeoutError:
            response.close()
            raise TooSlow from None
        except (aiohttp.ClientError, OSError) as error:
            response.close()
            raise Lost(str(error)) from None
        except BaseException:
            response.close()
            raise
