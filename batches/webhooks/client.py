"""Send one attempt to a receiver that may be slow, broken or hostile. Pure: no Django.

The host's addresses are looked up once, those that deliveries may not go to are dropped, and the connection goes to
one of the rest: between check and connection there is no second look-up whose answer could differ. The name stays in
the Host header and in TLS.
"""

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from batches.webhooks.addresses import is_address, is_allowed

KEPT_BYTES = 2048  # of an answer's body, for a person who looks for the fault
_BODY_SECONDS = 2.0  # for reading them: the status has been heard by then
_HEAD_BYTES = 8190  # of one header line

_REFUSED = "the address is not on the open internet"


class Refused(OSError):
    """The address is one that deliveries don't go to."""

    def __init__(self) -> None:
        super().__init__(_REFUSED)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one attempt: status 0 when no status line came, and then why."""

    status: int
    milliseconds: int
    body: bytes = b""
    error: str = ""

    @property
    def succeeded(self) -> bool:
        """Whether the receiver took it; a redirect is not followed and no success."""
        return 200 <= self.status < 300


class _Resolver(AbstractResolver):
    """Looks names up and keeps the addresses that deliveries may go to."""

    def __init__(self, allow_private: bool) -> None:
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the allowed addresses; raise Refused when there are none."""
        loop = asyncio.get_running_loop()
        infos = await loop.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        allowed = [info for info in infos if is_allowed(str(info[4][0]), allow_private=self._allow_private)]
        if not allowed:
            raise Refused
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [
            ResolveResult(hostname=host, host=str(to[0]), port=port, family=kind, proto=proto, flags=flags)
            for kind, _, proto, _, to in allowed
        ]

    async def close(self) -> None:
        """Nothing is held."""


class Client:
    """Sends attempts; each makes a connection of its own, and proxies of the environment are not used."""

    def __init__(self, timeout_seconds: float, *, allow_private: bool) -> None:
        self._timeout = timeout_seconds
        self._allow_private = allow_private
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                force_close=True,
                use_dns_cache=False,
                resolver=_Resolver(allow_private),
                socket_factory=self._socket,
                ssl=ssl.create_default_context(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            max_line_size=_HEAD_BYTES,
            max_field_size=_HEAD_BYTES,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def post(self, url: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Send once and return what came of it; never raises for what the receiver or the network does."""
        started = time.monotonic()

        def answer(status: int = 0, body: bytes = b"", error: str = "") -> Answer:
            return Answer(status, round((time.monotonic() - started) * 1000), body, error[:200])

        host = urlsplit(url).hostname or ""
        if is_address(host) and not is_allowed(host, allow_private=self._allow_private):
            return answer(error=_REFUSED)
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._session.post(url, data=body, headers=headers, allow_redirects=False)
        except TimeoutError:
            return answer(error=f"no answer within {self._timeout:g} s")
        except aiohttp.ClientConnectorError as error:
            return answer(error=str(error.os_error.strerror or error.os_error))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return answer(error=f"{type(error).__name__}: {error}")
        status = response.status
        reply = answer(status, error="" if 200 <= status < 300 else f"status {status}")
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                kept = await _start_of(response)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            kept = b""
        finally:
            response.close()
        return Answer(status, reply.milliseconds, kept, reply.error)

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """Make the socket for one address: the last look before the connection."""
        family, kind, proto, _, to = info
        if not is_allowed(str(to[0]), allow_private=self._allow_private):
            raise Refused
        return socket.socket(family, kind, proto)


async def _start_of(response: aiohttp.ClientResponse) -> bytes:
    """Return the body's first bytes; an endless body costs no more than these."""
    kept = bytearray()
    while len(kept) < KEPT_BYTES:
        block = await response.content.read(KEPT_BYTES - len(kept))
        if not block:
            break
        kept += block
    return bytes(kept)
