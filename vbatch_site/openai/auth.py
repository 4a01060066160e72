"""Who is asking: bearer keys, and the project that each request acts for."""

from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from vbatch_site import limits
from vbatch_site.audit import address_of
from vbatch_site.models import ApiKey, Project, Scope
from vbatch_site.openai.errors import ApiError, Json

_CHALLENGE = {"www-authenticate": 'Bearer realm="vbatch API"'}


def _masked(key: str) -> str:
    """Return a key as an error may show it."""
    return key if len(key) <= 8 else f"{key[:4]}{'*' * 8}{key[-4:]}"


class ApiRequest(Request):
    """A request as views see it. Only a type: what BearerAuthentication and the parsers make of DRF's own."""

    user: Project  # type: ignore[assignment]
    auth: ApiKey | None
    data: Json


def is_trusted_network() -> bool:
    """Return whether any key or none acts for the default project: pages must say so."""
    return bool(settings.VBATCH_AUTH == "optional")


def bearer(request: HttpRequest) -> str:
    """Return the key that a request brings, an empty text without one."""
    scheme, _, text = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
    return str(text.strip()) if scheme.lower() == "bearer" else ""


def unknown_key(text: str) -> ApiError:
    """Return the 401 for a key that opens nothing, or for none."""
    if not text:
        return ApiError("Missing bearer or basic authentication in header", http_status=401, headers=_CHALLENGE)
    message = f"Incorrect API key provided: {_masked(text)}. Keys are issued in the admin."
    return ApiError(message, code="invalid_api_key", http_status=401, headers=_CHALLENGE)


class BearerAuthentication(BaseAuthentication):
    """Accept `Authorization: Bearer KEY`, and no key at all when VBATCH_AUTH is optional."""

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        """Put the project on `request.user` and the key on `request.auth`, or raise a 401."""
        if text := bearer(request._request):
            now = timezone.now()
            key = ApiKey.valid_for(text, now)
            if key is not None:
                key.touch(now, address_of(request._request))
                return key.project, key
        if is_trusted_network():
            return Project.default(), None
        raise unknown_key(text)


def check_scope(key: ApiKey | None, area: str | None, method: str) -> None:
    """Refuse a key that was not issued for an area, or only to read; raise a 403.

    No key is what VBATCH_AUTH=optional lets in: it may do everything.
    """
    if key is None or key.allows(area, reading=method in SAFE_METHODS):
        return
    lacking = "write" if key.allows(area, reading=True) else area
    message = f"You have insufficient permissions for this operation. Missing scopes: {lacking}."
    raise ApiError(message, code="missing_scope", http_status=403)


class RequestRate(BaseThrottle):
    """Count each request that has a key against its project's rate, and say in every answer how it stands."""

    def allow_request(self, request: Request, view: Any) -> bool:
        """Return True, or raise the 429."""
        project: Any = request.user
        # The API's description is shown without a key, and counted for nobody.
        rate = limits.take_request(project) if isinstance(project, Project) else None
        if rate is not None:
            request._request.rate_headers = rate.headers()  # type: ignore[attr-defined]
            if rate.retry_after is not None:
                raise rate.refusal()
        return True


class HasProject(BasePermission):
    """Let a request through that acts for a project with a key issued for the view's `scope`.

    A view outside the files and batches rooms names its own: `scope = Scope.LIVE`; None is open to every key.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        """Return whether authentication found a project; raise ApiError when its key is for something else."""
        if not isinstance(request.user, Project):
            return False
        check_scope(request.auth, getattr(view, "scope", Scope.BATCHES), request.method or "")
        return True
