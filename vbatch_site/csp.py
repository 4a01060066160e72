"""What a page may load and run: a Content-Security-Policy for every answer, without inline scripts anywhere."""

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

HEADER = "Content-Security-Policy"

_SHARED = {
    "default-src": "'self'",
    # Unfold and the plots set sizes in style attributes.
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data:",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}


def _policy(**more: str) -> str:
    parts = _SHARED | {name.replace("_", "-"): value for name, value in more.items()}
    return "; ".join(f"{name} {value}" for name, value in parts.items())


# Alpine, which Unfold's menus are made of, computes the expressions in its attributes with `new Function`; its build
# without that can't be put into Unfold's pages. No script in a page's text runs all the same.
_WITH_ALPINE = _policy(script_src="'self' 'unsafe-eval'")
_PLAIN = _policy(script_src="'self'")
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


class PolicyMiddleware:
    """Add the policy that belongs to the path."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer one request."""
        response = self.get_response(request)
        if request.path.startswith(("/admin/", "/console")):
            policy = _WITH_ALPINE
        elif response.headers.get("Content-Type", "").startswith("text/html"):
            policy = _PLAIN
        else:
            # Content that a user uploaded stays text, whatever a browser is told that it is.
            policy = _NOTHING
        response.headers.setdefault(HEADER, policy)
        return response
