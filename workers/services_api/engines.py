"""Ask the engines of services: one request, with another replica where one does not answer."""

import random
import socket
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import urlsplit

import msgspec
from django.db import close_old_connections

from vbatch_site.openai.errors import ApiError
from workers import services
from workers.keys import engine_key
from workers.models import Service, ServiceState

SECONDS = 30.0  # that an answer may take; more nodes take longer
_SHORT_SECONDS = 5.0  # for what an engine answers without computing


class UnreachableError(Exception):
    """An engine could not be asked."""


def call(
    service: Service, method: str, path: str, body: object = None, *, seconds: float = SECONDS
) -> tuple[int, bytes]:
    """Send one request to a service's engine; return status and body, or raise UnreachableError or TimeoutError."""
    # An answer takes seconds; the connection that found the service goes back to the pool meanwhile.
    close_old_connections()
    place = urlsplit(service.url)
    connection = HTTPConnection(place.hostname or "", place.port, timeout=seconds)
    headers = {"Authorization": f"Bearer {engine_key(service.pk)}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, body=None if body is None else msgspec.json.encode(body), headers=headers)
        response = connection.getresponse()
        return response.status, response.read()
    except TimeoutError:
        raise
    except (OSError, HTTPException, socket.gaierror) as error:
        raise UnreachableError(str(error)) from None
    finally:
        connection.close()


def running(rows: Sequence[Service]) -> list[Service]:
    """Return the running ones in any order; raise the refusal that fits when there are none."""
    found = [row for row in rows if row.state == ServiceState.RUNNING]
    if not found:
        name = rows[0].group_id or rows[0].job_id
        if all(row.is_ended for row in rows):
            raise ApiError(
                f"The service '{name}' has ended: {rows[0].state}.",
                code="service_ended",
                http_status=409,
                headers={"x-should-retry": "false"},
            )
        raise ApiError(
            f"The service '{name}' is not running yet: {rows[0].state}.",
            code="service_not_ready",
            kind="server_error",
            http_status=503,
            headers={"retry-after": "5"},
        )
    return random.sample(found, len(found))


def ask(
    rows: Sequence[Service], method: str, path: str, body: object = None, *, seconds: float = _SHORT_SECONDS
) -> tuple[Service, bytes]:
    """Return which service answered and what; raise ApiError for a refusal, a silence or no answer at all."""
    for service in running(rows):
        try:
            status, answer = call(service, method, path, body, seconds=seconds)
        except UnreachableError:
            continue
        except TimeoutError:
            raise ApiError(
                f"The service '{service.job_id}' did not answer within {seconds:.0f} s.",
                code="service_timeout",
                kind="server_error",
                http_status=504,
            ) from None
        services.touch([service.pk])
        if status == 200:
            return service, answer
        raise _refusal(service, status, answer)
    raise ApiError(
        f"The service '{rows[0].group_id or rows[0].job_id}' can't be reached.",
        code="service_unreachable",
        kind="server_error",
        http_status=502,
    )


def _refusal(service: Service, status: int, answer: bytes) -> ApiError:
    """Return an engine's refusal: the request's fault as a 400, its own as a 502."""
    try:
        error = msgspec.json.decode(answer)["error"]
        message = str(error["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        message = answer[:500].decode(errors="replace") or f"status {status}"
    if status in (400, 404, 422):
        return ApiError(message, code="refused_by_engine")
    return ApiError(
        f"The service '{service.job_id}' failed: {message}",
        code="service_failed",
        kind="server_error",
        http_status=502,
    )


def prompt(rows: Sequence[Service], text: str, model: str, max_tokens: int, temperature: float) -> dict[str, Any]:
    """Return what a service makes of a prompt: as a chat, and as plain text where the model has no chat template."""
    seconds = SECONDS * max(1, int(rows[0].config.get("resources", {}).get("nodes") or 1))
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    try:
        chat = {**body, "messages": [{"role": "user", "content": text}]}
        service, answer = ask(rows, "POST", "/v1/chat/completions", chat, seconds=seconds)
    except ApiError as refusal:
        if "chat template" not in str(refusal.detail):
            raise
        service, answer = ask(rows, "POST", "/v1/completions", {**body, "prompt": text}, seconds=seconds)
    found = msgspec.json.decode(answer)
    choice = found["choices"][0]
    said = choice["message"]["content"] if "message" in choice else choice["text"]
    return {
        "success": True,
        "text": said or "",
        "usage": found.get("usage") or {},
        "model": model,
        "service_id": service.job_id,
        "routed_to": f"{service.job_id}:{urlsplit(service.url).port}",
        "group_id": service.group_id or None,
        "total_replicas": len(rows),
    }
