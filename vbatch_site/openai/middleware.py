"""Headers of every answer, and the envelope for what no view answers."""

import time
from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from vbatch_site.logs import about
from vbatch_site.observed import name_django_route
from vbatch_site.openai.bodies import attach
from vbatch_site.openai.errors import internal_fault, plain_refusal
from vbatch_site.openai.headers import answer_headers, request_id

_API_PREFIXES = ("/v1/", "/api/")
_PAGES = ("/console/", "/admin/")


def is_api(request: HttpRequest) -> bool:
    """Return whether the path belongs to a program and not to a browser."""
    return request.path.startswith(_API_PREFIXES)


class EnvelopeMiddleware:
    """Give each request an id, its answer OpenAI's headers, and each fault the envelope."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer one request."""
        started = time.monotonic()
        request.request_id = request_id()  # type: ignore[attr-defined]
        attach(request)
        with about(request_id=request.request_id):  # type: ignore[attr-defined]
            response = self.get_response(request)
        name_django_route(request)
        if response.status_code >= 400 and not _is_json(response) and (is_api(request) or not _is_browser(request)):
            response = plain_refusal(request, response.status_code)
        milliseconds = int((time.monotonic() - started) * 1000)
        rate: dict[str, str] = getattr(request, "rate_headers", {})
        for name, value in (answer_headers(request.request_id, milliseconds) | rate).items():  # type: ignore[attr-defined]
            response.headers[name] = value
        return response

    def process_exception(self, request: HttpRequest, error: Exception) -> HttpResponse | None:
        """Answer a fault of a view that programs call; a browser gets Django's page."""
        return internal_fault(request, error) if is_api(request) else None


def _is_json(response: HttpResponseBase) -> bool:
    return response.headers.get("Content-Type", "").startswith("application/json")


def _is_browser(request: HttpRequest) -> bool:
    # htmx asks for parts of pages without naming a type.
    return "text/html" in request.headers.get("Accept", "") or request.path.startswith(_PAGES)
