"""Refuse at once what a web process can't get to: a server that takes everything answers nobody in time.

Every request that waits for its answer holds a thread or an engine's attention. Above a number of them the next one
gets a 503 that says when to come back; SDKs obey it. An answer that has begun no longer counts: a download or a stream
costs little. Pages and signs of life are always answered, because they are how people look at a busy server.
"""

import json
import random
from typing import Any

from vbatch_site.descriptors import raise_limit
from vbatch_site.openai.bodies import Application, Message, Receive, Send
from vbatch_site.openai.errors import envelope
from vbatch_site.openai.headers import answer_headers, request_id

_API = ("/v1/", "/api/v1/")
# Milliseconds. Spread out, so that those who were refused together do not come back together.
_RETRY_MILLISECONDS = (500, 2000)


class Crowd:
    """The ASGI application around the others; there is one in each web process."""

    def __init__(self, application: Application, most: int) -> None:
        self._application, self._most = application, most
        self._waiting = 0
        # A connection takes a descriptor and a live stream two.
        raise_limit()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or not scope["path"].startswith(_API):
            return await self._application(scope, receive, send)
        if self._waiting >= self._most:
            return await self._refuse(send)
        self._waiting += 1
        begun = False

        async def send_and_count(message: Message) -> None:
            nonlocal begun
            if not begun:
                begun = True
                self._waiting -= 1
            await send(message)

        try:
            await self._application(scope, receive, send_and_count)
        finally:
            if not begun:
                self._waiting -= 1

    async def _refuse(self, send: Send) -> None:
        wait = random.randint(*_RETRY_MILLISECONDS)  # noqa: S311 (no secret)
        text = "The server has too many requests in hand to take this one. Please retry."
        body = json.dumps(envelope(text, "server_error", code="server_overloaded")).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "retry-after": str(-(-wait // 1000)),
            "retry-after-ms": str(wait),
            **answer_headers(request_id(), 0),
        }
        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 503, "headers": pairs})
        await send({"type": "http.response.body", "body": body})
