"""Request bodies between the ASGI server and Django: bounded, and multipart straight into its parser.

Django spools a whole body to disk before it looks at the request. Here a multipart body is read while it is parsed, so
a key is checked before the bytes come, they are written once, and a body without a Content-Length, which Django's
parser takes for an empty one, is a body like any other (contract.md 0.1). uvicorn throws away what nobody read.
"""

import asyncio
import io
import json
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import CancelledError, Future
from typing import Any

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest

from vbatch_site.openai.errors import envelope
from vbatch_site.openai.headers import answer_headers, request_id

MAX_MULTIPART_BYTES = 513 << 20  # the largest file, and room for the other fields
STALL_SECONDS = 120.0  # a client that sends nothing for so long has gone
_TAIL_BYTES = 256  # more than a closing boundary takes
_SCOPE_KEY = "vbatch.body"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
# Django and uvicorn write down the messages in different types.
Application = Callable[[Any, Any, Any], Awaitable[None]]


class Stalled(OSError):
    """The rest of the body did not come."""


class ArrivingBody:
    """A body as a file, read by a thread while the event loop receives it."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit = receive, limit
        self._loop = asyncio.get_running_loop()
        self._block, self._at, self._read = b"", 0, 0
        self._pending: Future[Message] | None = None
        self._closed = False
        self.ended = asyncio.Event()
        self.tail = b""

    def read(self, size: int) -> bytes:
        """Return at most so many bytes, none at the end; raise Stalled, or RequestDataTooBig above the limit."""
        while self._at == len(self._block):
            if self.ended.is_set():
                return b""
            self._next_block()
        data = self._block[self._at : self._at + size]
        self._at += len(data)
        return data

    def readline(self) -> bytes:
        """Return a block; Django iterates over lines only to throw the rest of a body away."""
        return self.read(1 << 20)

    def _next_block(self) -> None:
        self._pending = asyncio.run_coroutine_threadsafe(self._next_message(), self._loop)
        if self._closed:
            self._pending.cancel()
        try:
            message = self._pending.result(STALL_SECONDS)
        except (CancelledError, TimeoutError):
            self._pending.cancel()
            raise Stalled("the client sent no more") from None
        if message["type"] != "http.request":
            raise Stalled("the client went away")
        self._block, self._at = message.get("body", b""), 0
        self._read += len(self._block)
        self.tail = (self.tail + self._block[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        if self._read > self._limit:
            raise RequestDataTooBig("multipart body")

    async def _next_message(self) -> Message:
        message = await self._receive()
        if not message.get("more_body"):
            self.ended.set()
        return message

    def close(self) -> None:
        """Let go a thread that waits for more; call in the event loop."""
        self._closed = True
        if self._pending is not None:
            self._pending.cancel()


class BodyGate:
    """The ASGI application around Django's."""

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass a request on with a bounded body, or refuse it."""
        if scope["type"] != "http":
            return await self.application(scope, receive, send)
        headers = dict(scope["headers"])
        if scope["path"].startswith("/v1/") and headers.get(b"content-type", b"").startswith(b"multipart/form-data"):
            return await self._arriving(scope, receive, send)
        # Twice what a view may read: the views refuse what is a little too large in their own words.
        limit = 2 * settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            return await _refuse(send)
        return await self._counted(scope, receive, send, limit)

    async def _arriving(self, scope: Any, receive: Receive, send: Send) -> None:
        body = ArrivingBody(receive, MAX_MULTIPART_BYTES)
        asked = False

        async def receive_nothing() -> Message:
            """Give Django an empty body; after that it only listens for the client going away."""
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            # The thread that parses receives until then, and sees a disconnect itself.
            await body.ended.wait()
            return await receive()

        scope[_SCOPE_KEY] = body
        try:
            await self.application(scope, receive_nothing, send)
        finally:
            body.close()

    async def _counted(self, scope: Any, receive: Receive, send: Send, limit: int) -> None:
        """Pass a body on, and cut it off where it grows above the limit."""
        received, refused = 0, False

        async def receive_counted() -> Message:
            nonlocal received, refused
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                refused = True
                return {"type": "http.disconnect"}
            return message

        await self.application(scope, receive_counted, send)
        if refused:
            await _refuse(send)


async def _refuse(send: Send) -> None:
    body = json.dumps(envelope("The request body is too large.", code="request_too_large")).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **answer_headers(request_id(), 0)}
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 413, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def attach(request: HttpRequest) -> None:
    """Give a request the body that arrives while it is parsed, and a length to one that came without.

    Parsers take a missing length for zero.
    """
    scope: Any = getattr(request, "scope", {})
    body: ArrivingBody | None = scope.get(_SCOPE_KEY)
    if body is not None:
        request._stream = body  # type: ignore[assignment]
        # Only to be no zero; Django's multipart parser reads to the end.
        request.META["CONTENT_LENGTH"] = "1"
    stream = getattr(request, "_stream", None)
    if "CONTENT_LENGTH" not in request.META and stream is not None and stream.seekable():
        length = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        if length:
            request.META["CONTENT_LENGTH"] = str(length)


def is_whole(request: HttpRequest, boundary: str) -> bool:
    """Return whether a multipart body that was read ended with its closing boundary."""
    body = getattr(request, "_stream", None)
    return not isinstance(body, ArrivingBody) or f"--{boundary}--".encode() in body.tail
