"""Serve vLLM's routes as one plain ASGI callable.

No framework: at thousands of requests a second its share would be most of the work, and this process shares its cores
with what it measures.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs

import msgspec

from . import pooling
from .answers import Chat, Completion, Job, Response, encode, random_hex
from .bodies import TOKEN_CHARS
from .engine import Engine
from .knobs import Knobs, Options
from .refusals import RefusalError, envelope, plain

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Route = Callable[[Scope, bytes], bytes]

JSON = b"application/json"
# vLLM asks for the key below these paths and nowhere else.
GUARDED = ("/v1/", "/v2/", "/inference/")
# What /v1/models and /tokenize say where no length was given; nothing is refused by it.
UNSET_MODEL_LEN = 32_768
# The exit status of a process that a segmentation fault ended, as a shell gives it.
CRASH_STATUS = 139

_MARKER = re.compile(rb"\[\[sim:([0-9a-z]+)(?::([0-9.]+))?\]\]")

JOBS: dict[str, type[Any]] = {
    "/v1/chat/completions": Chat,
    "/v1/completions": Completion,
    "/v1/responses": Response,
    "/v1/embeddings": pooling.Embedding,
    "/v1/score": pooling.Score,
    "/score": pooling.Score,
    "/v1/rerank": pooling.Rerank,
    "/v2/rerank": pooling.Rerank,
    "/rerank": pooling.Rerank,
}


class App:
    """The simulated server."""

    def __init__(self, knobs: Knobs, options: Options) -> None:
        self._knobs = knobs
        self._options = options
        self._names = frozenset(options.served_names + options.lora_names)
        self._keys = [hashlib.sha256(key.encode()).digest() for key in options.api_keys]
        # The last key that was right: comparing with it spares a hash for each request.
        self._known = b""
        self._engine = Engine(knobs, by_priority=options.by_priority)
        self._started = int(time.time())
        self._opens_at = time.monotonic() + knobs.startup_seconds if knobs.startup_seconds else 0.0
        self._log = -1
        if knobs.request_log:
            self._log = os.open(knobs.request_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._routes: dict[str, tuple[str, Route]] = {
            "/health": ("GET", lambda scope, raw: b""),
            "/v1/models": ("GET", self._models),
            "/version": ("GET", lambda scope, raw: encode({"version": "0.32.0+sim"})),
            "/metrics": ("GET", lambda scope, raw: self._engine.metrics(options.served_names[0])),
            "/sim/stats": ("GET", lambda scope, raw: encode(self._engine.stats())),
            "/tokenize": ("POST", self._tokenize),
            "/sleep": ("POST", self._sleep),
            "/wake_up": ("POST", self._wake_up),
            "/is_sleeping": ("GET", lambda scope, raw: encode({"is_sleeping": self._engine.asleep})),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            if self._opens_at:
                self._refuse_until_started()
            path = scope["path"]
            job_type = JOBS.get(path)
            headers = dict(scope["headers"])
            if self._keys and path.startswith(GUARDED):
                self._check_key(headers)
            if job_type is None:
                await self._answer_simply(path, scope, receive, send)
                return
            if scope["method"] != "POST":
                raise plain(HTTPStatus.METHOD_NOT_ALLOWED)
            raw = await _body(receive, headers)
            if raw is None:
                return
            job: Job = job_type(raw)
            self._check_model(job.model)
            job.check(self._options.max_model_len)
            request_id = headers.get(b"x-request-id", b"").decode("latin-1") or random_hex()
        except RefusalError as refusal:
            await _respond(send, refusal.status, refusal.body)
            return
        separator = "_" if job.id_prefix == "resp" else "-"
        await self._take(job, f"{job.id_prefix}{separator}{request_id}", raw, receive, send)

    def _refuse_until_started(self) -> None:
        if time.monotonic() < self._opens_at:
            raise plain(HTTPStatus.SERVICE_UNAVAILABLE)
        self._opens_at = 0.0

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        given = headers.get(b"authorization", b"")
        if given == self._known and given:
            return
        scheme, _, key = given.partition(b" ")
        digest = hashlib.sha256(key).digest()
        if scheme.lower() == b"bearer" and any(secrets.compare_digest(digest, known) for known in self._keys):
            self._known = given
            return
        refusal = plain(HTTPStatus.UNAUTHORIZED)
        # vLLM's middleware answers before its handlers of errors can: a word in place of the usual object.
        refusal.body = encode({"error": "Unauthorized"})
        raise refusal

    def _check_model(self, model: str | None) -> None:
        if model and model not in self._names:
            names = ", ".join(self._options.served_names)
            raise RefusalError(
                HTTPStatus.NOT_FOUND.value,
                f"The model `{model}` does not exist. Valid aliases: {names}.",
                kind="NotFoundError",
                param="model",
            )

    async def _answer_simply(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the routes that compute nothing."""
        method, route = self._routes.get(path, ("", None))
        if route is None:
            raise plain(HTTPStatus.NOT_FOUND)
        if scope["method"] != method:
            raise plain(HTTPStatus.METHOD_NOT_ALLOWED)
        raw = b""
        if path == "/tokenize":
            body = await _body(receive, dict(scope["headers"]))
            if body is None:
                return
            raw = body
        kind = b"text/plain; version=0.0.4; charset=utf-8" if path == "/metrics" else JSON
        await _respond(send, 200, route(scope, raw), kind=kind)

    async def _take(self, job: Job, request_id: str, raw: bytes, receive: Receive, send: Send) -> None:
        """Work on a request that was found right."""
        if self._log >= 0:
            # One write of the whole line: O_APPEND keeps the lines of several servers apart.
            os.write(self._log, msgspec.json.encode(job.user_text) + b"\n")
        markers = _markers(raw) | self._orders()
        if b"crash" in markers:
            _crash()
        engine = self._engine
        engine.priorities[job.priority] += 1
        if self._knobs.instant and engine.has_room and not job.stream and not markers:
            # Nothing to wait for: no time for the client to go away in, so nobody needs to look.
            engine.start()
            try:
                await self._finish(job, request_id, markers, send)
            finally:
                engine.leave()
            return
        current = asyncio.current_task()
        watcher = asyncio.create_task(_cancel_when_gone(receive, current))
        try:
            await self._work(job, request_id, markers, send)
        except asyncio.CancelledError:
            # Only the watcher cancels: the server is ended by a signal, not by cancelling its tasks.
            engine.aborted += 1
        finally:
            watcher.cancel()

    def _orders(self) -> dict[bytes, bytes]:
        """Read what all requests are taken to ask for at present."""
        if not self._knobs.orders:
            return {}
        try:
            return _markers(Path(self._knobs.orders).read_bytes())
        except OSError:
            return {}

    async def _work(self, job: Job, request_id: str, markers: dict[bytes, bytes], send: Send) -> None:
        """Wait for a place, then for as long as the knobs and markers say, and answer."""
        engine = self._engine
        await engine.enter(job.priority)
        try:
            if b"hang" in markers:
                await asyncio.Event().wait()
            seconds = engine.seconds_to_first_token(time.monotonic()) + _slow_seconds(markers)
            if not job.stream:
                # The first token is in the time to the first token.
                seconds += max(0, job.steps - 1) * engine.seconds_per_token()
            if seconds:
                await asyncio.sleep(seconds)
            await self._finish(job, request_id, markers, send)
        finally:
            engine.leave()

    async def _finish(self, job: Job, request_id: str, markers: dict[bytes, bytes], send: Send) -> None:
        """Answer well, or badly in the way that was ordered."""
        engine = self._engine
        failure = self._failure(job, markers)
        if failure is not None:
            engine.failed += 1
            await _respond(send, failure.status, failure.body)
            return
        cached = min(job.prompt_tokens, engine.cache.look_up(job.prompt) // TOKEN_CHARS)
        job.cached_tokens = cached
        model = job.model or self._options.served_names[0]
        if engine.woke and self._knobs.wake_garbles:
            job.garble()
        if b"garbage" in markers:
            await _respond(send, 200, b"<html>this is not JSON")
        elif b"200error" in markers:
            await _respond(send, 200, envelope(500, "The marker [[sim:200error]] asked.", kind="InternalServerError"))
        elif b"bytes" in markers:
            await _respond(send, 200, b'{"choices": [{"message": {"content": "\xff"}}], "usage": null}')
        elif job.stream:
            await self._stream(job, request_id, model, send, cut=b"truncate" in markers)
        else:
            body = job.answer(request_id, model)
            await _respond(send, 200, body, cut=b"truncate" in markers)
        engine.count(prompt_tokens=job.prompt_tokens, cached_tokens=cached, generation_tokens=job.completion_tokens)

    def _failure(self, job: Job, markers: dict[bytes, bytes]) -> RefusalError | None:
        if b"400" in markers:
            return RefusalError(400, "The marker [[sim:400]] asked for this.", kind="BadRequestError")
        if b"500" in markers:
            return RefusalError(500, "The marker [[sim:500]] asked for this.", kind="InternalServerError")
        if b"503once" in markers and self._engine.is_first(job.user_text):
            return RefusalError(503, "The marker [[sim:503once]] asked for this.", kind="ServiceUnavailableError")
        if self._engine.fails(job.user_text):
            return RefusalError(500, "VBATCH_SIM_FAILURE_RATE asked for this.", kind="InternalServerError")
        return None

    async def _stream(self, job: Job, request_id: str, model: str, send: Send, *, cut: bool) -> None:
        """Send server-sent events at the pace of the decoding; stop half-way if the stream is to be cut."""
        pace = self._engine.seconds_per_token()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
            }
        )
        due = time.monotonic()
        pending: list[bytes] = []
        for steps, event in job.events(request_id, model):
            if steps and pace:
                await send({"type": "http.response.body", "body": b"".join(pending), "more_body": True})
                pending = []
                # Counted from the start, so that late wake-ups don't add up.
                due += steps * pace
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            pending.append(event)
        body = b"".join(pending)
        if cut:
            body = body[: len(body) // 2]
        # Left with more_body set, the connection is closed by uvicorn without the last chunk.
        await send({"type": "http.response.body", "body": body, "more_body": cut})

    def _models(self, scope: Scope, raw: bytes) -> bytes:
        options = self._options
        base = options.served_names[0]
        length = options.max_model_len or UNSET_MODEL_LEN
        cards = [self._card(name, options.model, None, length) for name in options.served_names]
        cards += [self._card(name, name, base, None) for name in options.lora_names]
        return encode({"object": "list", "data": cards})

    def _card(self, name: str, root: str, parent: str | None, length: int | None) -> dict[str, object]:
        permission = {
            "id": f"modelperm-{random_hex()}",
            "object": "model_permission",
            "created": self._started,
            "allow_create_engine": False,
            "allow_sampling": True,
            "allow_logprobs": True,
            "allow_search_indices": False,
            "allow_view": True,
            "allow_fine_tuning": False,
            "organization": "*",
            "group": None,
            "is_blocking": False,
        }
        return {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "vllm",
            "root": root,
            "parent": parent,
            "max_model_len": length,
            "permission": [permission],
        }

    def _tokenize(self, scope: Scope, raw: bytes) -> bytes:
        model, answer = pooling.tokenize(raw, self._options.max_model_len or UNSET_MODEL_LEN)
        self._check_model(model)
        return answer

    def _sleep(self, scope: Scope, raw: bytes) -> bytes:
        level = parse_qs(scope["query_string"]).get(b"level", [b"1"])[0]
        self._engine.asleep = True
        return encode({"status": "sleeping", "level": int(level) if level.isdigit() else 1})

    def _wake_up(self, scope: Scope, raw: bytes) -> bytes:
        tags = [tag.decode() for tag in parse_qs(scope["query_string"]).get(b"tags", [])]
        self._engine.asleep = False
        self._engine.woke = True
        self._engine.admit()
        return encode({"status": "awake", "tags": tags or None})


async def _body(receive: Receive, headers: dict[bytes, bytes]) -> bytes | None:
    """Read a body; None where the client went away before its end."""
    message = await receive()
    raw: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        raw += message.get("body", b"")
    if message["type"] == "http.disconnect":
        return None
    if not headers.get(b"content-type", b"").lower().startswith(JSON):
        raise RefusalError(
            400,
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            kind=HTTPStatus.BAD_REQUEST.phrase,
        )
    return raw


async def _respond(send: Send, status: int, body: bytes, *, kind: bytes = JSON, cut: bool = False) -> None:
    """Send a whole answer, or promise one and send half of it."""
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if cut:
        body = body[: len(body) // 2]
    # Left with more_body set, the connection is closed by uvicorn.
    await send({"type": "http.response.body", "body": body, "more_body": cut})


async def _cancel_when_gone(receive: Receive, task: asyncio.Task[None] | None) -> None:
    """Cancel a task when its client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if task is not None:
        task.cancel()


def _markers(raw: bytes) -> dict[bytes, bytes]:
    """Find what the texts ask for; the raw body will do, as JSON writes these characters as they are."""
    if b"[[sim:" not in raw:
        return {}
    return dict(_MARKER.findall(raw))


def _slow_seconds(markers: dict[bytes, bytes]) -> float:
    try:
        seconds = float(markers.get(b"slow") or 0)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def _crash() -> NoReturn:
    """End as a segmentation fault would: no goodbye to anyone."""
    os._exit(CRASH_STATUS)
