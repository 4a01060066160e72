"""Each HTTP request, counted, timed and, in JSON logs, written down; live requests and refused ones too.

A process keeps its counts for some seconds and adds them to the tally, where those of all processes meet. One that is
killed takes with it what it had not added yet.
"""

import atexit
import logging
import threading
import time
from bisect import bisect_left
from collections import Counter as Multiset
from contextlib import suppress
from typing import Any

from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest

from vbatch_site import tally, traces
from vbatch_site.openai.bodies import Application, Message, Receive, Send

logger = logging.getLogger(__name__)

REQUESTS, SECONDS, BUCKETS = "http_requests", "http_seconds", "http_buckets"
BOUNDS = ("0.005", "0.02", "0.05", "0.1", "0.25", "1", "2.5", "10", "60", "+Inf")  # seconds
FLUSH_SECONDS = 5.0

_LIMITS = [float(bound) for bound in BOUNDS]
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_CLIENT_LEFT = 499  # nginx's number for a client that went away before its answer
_SCOPE_KEY = "vbatch.route"

_lock = threading.Lock()
_counts: Multiset[tally.Counter] = Multiset()
_flusher: threading.Thread | None = None


def name_route(scope: Any, route: str, **ids: str) -> None:
    """Say which route a request has, for its counters, and what it is about, for its line in the log."""
    scope[_SCOPE_KEY] = (route, ids)


def name_django_route(request: HttpRequest) -> None:
    """Name the route that Django found for a request."""
    scope, match = getattr(request, "scope", None), request.resolver_match
    if scope is None or _SCOPE_KEY in scope:
        return
    if request.path.startswith("/static/"):
        name_route(scope, "static")
    elif match is not None:
        # The admin has hundreds of routes, which tell nobody anything.
        route = "admin" if match.route.startswith("admin/") else match.route.replace(" ", "") or "/"
        ids = {name.removesuffix("_id"): str(value) for name, value in match.kwargs.items() if name == "batch_id"}
        name_route(scope, route, request_id=getattr(request, "request_id", ""), **ids)


class Observed:
    """The ASGI application around all others."""

    def __init__(self, application: Application) -> None:
        self._application = application
        traces.prepare()
        _start_flusher()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass a request on, and note how it went."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        began, status, seconds = time.monotonic(), _CLIENT_LEFT, None

        async def send_noted(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.monotonic() - began
            await send(message)

        try:
            await self._application(scope, receive, send_noted)
        finally:
            route, ids = scope.get(_SCOPE_KEY, ("other", {}))
            method = scope["method"] if scope["method"] in _METHODS else "other"
            _note(method, route, status, time.monotonic() - began if seconds is None else seconds)
            whole = round((time.monotonic() - began) * 1000)
            traces.of_request(scope, whole)
            extra = {"action": "http_request", "method": method, "path": scope["path"], "route": route}
            logger.info("request", extra=extra | {"status": status, "milliseconds": whole} | ids)


def _note(method: str, route: str, status: int, seconds: float) -> None:
    label = f"{method} {route}"
    bound = BOUNDS[bisect_left(_LIMITS, seconds)]
    with _lock:
        _counts[tally.Counter(REQUESTS, label=f"{label} {status}")] += 1
        _counts[tally.Counter(BUCKETS, label=f"{label} {bound}")] += 1
        _counts[tally.Counter(SECONDS, label=label)] += seconds  # type: ignore[assignment]


def flush() -> None:
    """Add this process's counts to everybody's; raise DatabaseError, and keep them, when that can't be done."""
    global _counts
    with _lock:
        taken, _counts = _counts, Multiset()
    try:
        tally.count(taken)
    except (DatabaseError, InterfaceError):
        with _lock:
            _counts.update(taken)
        raise


def _flush_forever() -> None:
    while True:
        time.sleep(FLUSH_SECONDS)
        _flush_quietly()


def _flush_quietly() -> None:
    # It is tried again, and a database that is away is in the log already.
    with suppress(DatabaseError, InterfaceError):
        flush()
    with suppress(DatabaseError, InterfaceError):
        connection.close()


def _start_flusher() -> None:
    global _flusher
    if _flusher is None:
        _flusher = threading.Thread(target=_flush_forever, name="http-counts", daemon=True)
        _flusher.start()
        atexit.register(_flush_quietly)
