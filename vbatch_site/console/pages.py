"""What every console view has in common: the right it needs, compression, and pages that answer with a part."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.gzip import gzip_page
from django.views.decorators.http import require_http_methods
from django.views.decorators.vary import vary_on_headers

from vbatch_site.console.roles import Right, may, rights
from vbatch_site.openai.errors import ApiError

P = ParamSpec("P")
View = Callable[..., HttpResponseBase]

ACTIVE_SECONDS = 2  # between two looks at something that changes
DASHBOARD_SECONDS = 5

_VERBS = {
    Right.VIEW: "open the console",
    Right.PROMPTS: "see requests and answers",
    Right.OPERATE: "upload, create, steer or download",
    Right.ADMINISTER: "manage keys, webhooks, models or services",
}


class SeeOther(HttpResponseRedirect):
    """Leads from a form that was sent to the page that shows what came of it."""

    status_code = 303


def is_partial(request: HttpRequest) -> bool:
    """Return whether htmx asks for a part of the page."""
    return "HX-Request" in request.headers


def _refuse(request: HttpRequest, right: Right) -> HttpResponse:
    context = {"title": "Not allowed", "verb": _VERBS[right]}
    if is_partial(request):
        return HttpResponse(f"Your role may not {_VERBS[right]}.", status=403, content_type="text/plain")
    return render(request, "console/parts/refused.html", admin.site.each_context(request) | context, status=403)


def page(
    right: Right = Right.VIEW, methods: tuple[str, ...] = ("GET", "HEAD"), compress: bool = True
) -> Callable[[View], View]:
    """Make a view a console page: sign-in, right, methods, and what a refused one gets."""

    def wrap(view: View) -> View:
        allowed: View = require_http_methods([*methods])(view)

        @wraps(view)
        def checked(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not admin.site.has_permission(request):
                login = reverse("admin:login") + "?" + urlencode({"next": request.get_full_path()})
                if is_partial(request):
                    # The session is over: the whole page goes to the form, not a part of it.
                    return HttpResponse(status=204, headers={"HX-Redirect": reverse("admin:login")})
                return HttpResponseRedirect(login)
            if not (may(request.user, Right.VIEW) and may(request.user, right)):
                return _refuse(request, right)
            try:
                return allowed(request, *args, **kwargs)
            except PermissionDenied:
                return _refuse(request, Right.PROMPTS)

        decorated: View = never_cache(csrf_protect(vary_on_headers("HX-Request", "Cookie")(checked)))
        return gzip_page(decorated) if compress else decorated

    return wrap


def show(
    request: HttpRequest, template: str, context: dict[str, Any], *, part: str | None = None, status: int = 200
) -> HttpResponse:
    """Render a page, or only its live part when htmx asks for that."""
    context = {"can": rights(request.user), **context}
    if part and is_partial(request):
        return render(request, part, context, status=status)
    return render(request, template, admin.site.each_context(request) | context, status=status)


def back(request: HttpRequest, to: str) -> HttpResponse:
    """Send the browser on after a form; htmx follows by the header, a plain form by the status."""
    if is_partial(request):
        return HttpResponse(status=204, headers={"HX-Redirect": to})
    return SeeOther(to)


def say(request: HttpRequest, text: str) -> None:
    """Show a note on the next page."""
    messages.success(request, text)


def complain(request: HttpRequest, text: str) -> None:
    """Show a refusal on the next page."""
    messages.error(request, text)


def error_text(error: ApiError) -> str:
    """Return the sentence of a refusal, as the API words it."""
    return str(error.body["error"]["message"])


def json_error(error: ApiError) -> JsonResponse:
    """Return a refusal as the API would send it."""
    return JsonResponse(error.body, status=error.status_code)
