"""Headers of every answer, and the envelope for what no view answers."""

import io
import secrets
import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from vbatch_site.openai.errors import internal_fault, unknown_url

_API_PREFIXES = ("/v1/", "/api/")


def is_api(request: HttpRequest) -> bool:
    """Return whether the path belongs to a program and not to a browser."""
    return request.path.startswith(_API_PREFIXES)


def _measure_chunked_body(request: HttpRequest) -> None:
    """Fill in the length of a chunked body; Django's multipart parser takes a missing one for zero.

    The ASGI handler has spooled the whole body by now, so its length is known (contract.md 0.1).
    """
    if "CONTENT_LENGTH" in request.META:
        return
    stream = getattr(request, "_stream", None)
    if stream is None or not hasattr(stream, "seek"):
        return
    length = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    if length:
        request.META["CONTENT_LENGTH"] = str(length)


class EnvelopeMiddleware:
    """Give each request an id, its answer OpenAI's headers, and each fault the envelope."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer one request."""
        started = time.monotonic()
        request.request_id = "req_" + secrets.token_hex(16)  # type: ignore[attr-defined]
        if is_api(request):
            _measure_chunked_body(request)
        response = self.get_response(request)
        if is_api(request) and response.status_code == 404 and not _is_json(response):
            response = unknown_url(request)
        response.headers["x-request-id"] = request.request_id  # type: ignore[attr-defined]
        response.headers["openai-version"] = "2020-10-01"
        response.headers["openai-processing-ms"] = str(int((time.monotonic() - started) * 1000))
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Answer a fault of a view that programs call; a browser gets Django's page."""
        return internal_fault(request, error) if is_api(request) else None


def _is_json(response: HttpResponseBase) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")
