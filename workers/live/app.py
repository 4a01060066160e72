"""The ASGI application in front of Django's: it answers live requests and passes all others on."""

import asyncio
import io
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
from django.conf import settings
from django.core.handlers.asgi import ASGIRequest

from batches.validation import RUNNABLE
from vbatch_site.descriptors import raise_limit
from vbatch_site.observed import name_route
from vbatch_site.openai.bodies import STALL_SECONDS, Application, Receive, Send
from vbatch_site.openai.errors import ApiError, envelope, exception_handler, internal_fault
from vbatch_site.openai.headers import answer_headers, request_id
from workers import lines
from workers.failures import Failure
from workers.live import bodies
from workers.live.door import Door
from workers.live.pulse import Pulse
from workers.live.roster import Roster
from workers.live.rows import Rows
from workers.live.upstream import Answer, Lost, TooSlow, Unreached, Upstream
from workers.priority import LIVE, with_priority

# Of a request whose connection broke: once more, because a second engine that dies of it is one too many.
RESENDS = 1
# Threads for what is written to the database once a second or less; each keeps a connection.
DATABASE_THREADS = 2

_JSON = "application/json"

logger = logging.getLogger(__name__)


class Gone(Exception):
    """The client went away, or can be told no more."""


class LiveApi:
    """The application; there is one in each web process."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._hub: Hub | None = None

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer a live request, or pass another one on."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in RUNNABLE:
            await self._application(scope, receive, send)
            return
        if self._hub is None:
            self._hub = Hub()
        await Exchange(self._hub, scope, receive, send).run()


class Hub:
    """What the live requests of one process share; belongs to one event loop."""

    def __init__(self) -> None:
        # A stream takes two.
        raise_limit()
        rows = Rows()
        self.roster = Roster(rows, ThreadPoolExecutor(DATABASE_THREADS, thread_name_prefix="live"))
        self.door = Door(rows, self.roster.in_thread)
        self.upstream = Upstream(settings.VBATCH_REQUEST_TIMEOUT, Pulse(self.roster.in_thread))


class Exchange:
    """One live request and its answer."""

    def __init__(self, hub: Hub, scope: Any, receive: Receive, send: Send) -> None:
        self._hub, self._receive, self._send = hub, receive, send
        self._path: str = scope["path"]
        self._started = time.monotonic()
        self._id = request_id()
        # Django's own, for the rules that its views share; the body is not read through it.
        self._request = ASGIRequest(scope, io.BytesIO())
        self._request.request_id = self._id  # type: ignore[attr-defined]
        name_route(scope, self._path.removeprefix("/"), request_id=self._id)
        self._project_id = 0
        self._is_begun = False

    async def run(self) -> None:
        """Answer; a client that goes away ends the work at once."""
        try:
            self._hub.roster.prepare()
            self._project_id = await self._hub.door.admit(self._request)
            body = await self._read_body()
            work = asyncio.create_task(self._work(body))
            gone = asyncio.create_task(self._until_gone())
            try:
                await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            finally:
                # A work that is cancelled closes its connection, and the engine aborts the request.
                work.cancel()
                gone.cancel()
                await asyncio.wait((work, gone))
            if not work.cancelled():
                work.result()
        except Gone:
            return
        except Exception as error:
            if self._is_begun:
                raise
            await self._refuse(error)

    async def _read_body(self) -> bytes:
        """Return the whole body; raise Gone, or ApiError when it is too large or does not come."""
        blocks: list[bytes] = []
        size = 0
        while True:
            try:
                async with asyncio.timeout(STALL_SECONDS):
                    message = await self._receive()
            except TimeoutError:
                text = "The rest of the request's body did not come."
                raise ApiError(text, code="request_timeout", http_status=408) from None
            if message["type"] != "http.request":
                raise Gone
            blocks.append(message.get("body", b""))
            size += len(blocks[-1])
            if size > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
                raise ApiError("The request body is too large.", code="request_too_large", http_status=413)
            if not message.get("more_body"):
                return b"".join(blocks)

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _work(self, body: bytes) -> None:
        """Get an answer to a request and pass it on."""
        model = bodies.model_of(body)
        answer = await self._reach(model, with_priority(body, LIVE))
        try:
            if answer.is_stream:
                await self._pass_on(answer)
            elif answer.status < 400:
                await self._answer(answer.status, answer.first, answer.kind)
            else:
                await self._answer(answer.status, lines.envelope(answer.first), _JSON)
        finally:
            answer.close()

    async def _reach(self, model: str, body: bytes) -> Answer:
        """Return the answer of an engine that could be reached; raise ApiError when none could."""
        deadline = self._started + settings.VBATCH_LIVE_WAIT_SECONDS
        lost = 0
        while True:
            engine = await self._hub.roster.engine(model, self._path, self._project_id, deadline)
            try:
                return await self._hub.upstream.send(engine, self._path, body, self._id)
            except Unreached:
                self._hub.roster.avoid(engine)
            except Lost:
                self._hub.roster.avoid(engine)
                lost += 1
                if lost > RESENDS:
                    raise _failed(Failure.ENGINE_LOST, 502) from None
            except TooSlow:
                raise _failed(Failure.TIMEOUT, 504) from None

    async def _pass_on(self, answer: Answer) -> None:
        """Send a stream as it comes."""
        await self._begin(answer.status, {"content-type": answer.kind, "cache-control": "no-cache"})
        tail = answer.first
        await self._send({"type": "http.response.body", "body": answer.first, "more_body": True})
        try:
            async for chunk in answer.rest():
                await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
                tail = (tail + chunk)[-2:]
        except Lost:
            logger.warning("stream broken off", extra={"action": "live_stream_lost", "request_id": self._id})
            if not tail.endswith(b"\n\n"):
                # In mid-event nothing can be said; the connection is closed without an end.
                raise Gone from None
            # SDKs raise what an event says under this key.
            failure = Failure.ENGINE_LOST
            event = msgspec.json.encode(envelope(failure.message, "server_error", code=failure.code))
            await self._send({"type": "http.response.body", "body": b"data: %b\n\n" % event, "more_body": True})
        await self._send({"type": "http.response.body", "body": b""})

    async def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        await self._begin(status, {"content-type": kind, "content-length": str(len(body)), **(headers or {})})
        await self._send({"type": "http.response.body", "body": body})

    async def _begin(self, status: int, headers: dict[str, str]) -> None:
        self._is_begun = True
        headers["x-content-type-options"] = "nosniff"
        headers |= answer_headers(self._id, int((time.monotonic() - self._started) * 1000))
        headers |= getattr(self._request, "rate_headers", {})
        pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})

    async def _refuse(self, error: Exception) -> None:
        """Answer with the envelope."""
        found = exception_handler(error, {"request": self._request, "view": None})
        if found is not None:
            status, body, named = found.status_code, msgspec.json.encode(found.data), found.headers
        else:
            fault = internal_fault(self._request, error)
            status, body, named = fault.status_code, fault.content, fault.headers
        headers = {name: value for name, value in named.items() if name.lower() != "content-type"}
        await self._answer(status, body, _JSON, headers)


def _failed(failure: Failure, status: int) -> ApiError:
    # SDKs would repeat it twice more, and with it whatever it did to the engines.
    headers = {"x-should-retry": "false"}
    return ApiError(failure.message, kind="server_error", code=failure.code, http_status=status, headers=headers)
