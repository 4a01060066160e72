"""Send requests to one engine. Pure: no Django."""

from dataclasses import dataclass
from types import TracebackType

import aiohttp
import msgspec

from workers.connections import Connections, Lost
from workers.failures import Failure, of_status


class _Card(msgspec.Struct):
    max_model_len: int | None = None


class _Version(msgspec.Struct):
    version: str


class _Cards(msgspec.Struct):
    data: list[_Card]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one attempt; status 0 means that no whole answer came."""

    status: int
    body: bytes
    failure: Failure | None


class EngineClient:
    """Keeps connections to an engine; a request whose task is cancelled is aborted in the engine."""

    def __init__(self, base_url: str, api_key: str, timeout_seconds: float) -> None:
        self._connections = Connections(base_url, api_key, timeout_seconds)
        self._session = aiohttp.ClientSession(
            base_url,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=timeout_seconds, sock_connect=30),
            headers={"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def __aenter__(self) -> "EngineClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        self._connections.close()
        await self._session.close()

    def break_off(self) -> None:
        """Give up all requests in flight: what became of a host without power, nothing on the connection tells."""
        self._connections.close()

    async def post(self, path: str, body: bytes) -> Reply:
        """Send one request and return what came of it; never raises for what the engine or the network does."""
        try:
            status, data = await self._connections.post(path, body)
            return Reply(status, data, of_status(status))
        except TimeoutError:
            return Reply(0, b"", Failure.TIMEOUT)
        except (Lost, OSError):
            return Reply(0, b"", Failure.CONNECTION_LOST)

    async def max_model_len(self) -> int | None:
        """Return the tokens of context that the engine's first model has, None when it doesn't say."""
        try:
            async with self._session.get("/v1/models") as response:
                cards = msgspec.json.decode(await response.read(), type=_Cards, strict=False)
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError):
            return None
        return cards.data[0].max_model_len if cards.data else None

    async def version(self) -> str | None:
        """Return the engine's version, None when it doesn't say."""
        try:
            async with self._session.get("/version", timeout=aiohttp.ClientTimeout(total=5)) as response:
                return msgspec.json.decode(await response.read(), type=_Version).version
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.MsgspecError):
            return None

    async def is_healthy(self) -> bool:
        """Return whether the engine says that it is ready."""
        try:
            async with self._session.get("/health", timeout=aiohttp.ClientTimeout(total=5)) as response:
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def metrics(self) -> str | None:
        """Return the engine's page of metrics, None when it can't be had."""
        try:
            async with self._session.get("/metrics", timeout=aiohttp.ClientTimeout(total=5)) as response:
                return await response.text() if response.status == 200 else None
        except (aiohttp.ClientError, OSError, TimeoutError, UnicodeDecodeError):
            return None

    async def command(self, path: str) -> bool:
        """Send an order without a body; return whether it was carried out."""
        try:
            async with self._session.post(path) as response:
                await response.read()
                return response.status == 200
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False
