"""The pages `/` and `/llms.txt`: how people, and programs that read, connect."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from vbatch_site.console.roles import Right, may


@require_safe
def landing(request: HttpRequest) -> HttpResponse:
    """Show the base URL and the lines that use it."""
    user = getattr(request, "user", None)
    context = {
        "title": "vbatch",
        **_connection(request),
        "may_issue": user is not None and may(user, Right.ADMINISTER),
    }
    return render(request, "console/site/landing.html", context)


@require_safe
def llms(request: HttpRequest) -> HttpResponse:
    """Describe the API in one page of text, for language models."""
    return render(request, "console/site/llms.txt", _connection(request), content_type="text/plain; charset=utf-8")


def _connection(request: HttpRequest) -> dict[str, Any]:
    return {
        "root": request.build_absolute_uri("/"),
        "base_url": request.build_absolute_uri("/v1"),
        "keyless": settings.VBATCH_AUTH == "optional",
        "simulated": settings.VBATCH_ENGINE == "sim",
        "window": settings.VBATCH_COMPLETION_WINDOWS[0],
    }
