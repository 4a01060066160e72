"""Who is asking: bearer keys, and the project that each request acts for."""

from typing import Any

from django.conf import settings
from django.utils import timezone
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from vbatch_site.models import ApiKey, Project
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


class BearerAuthentication(BaseAuthentication):
    """Accept `Authorization: Bearer KEY`, and no key at all when VBATCH_AUTH is optional."""

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        """Put the project on `request.user` and the key on `request.auth`, or raise a 401."""
        scheme, _, text = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        text = text.strip()
        optional = settings.VBATCH_AUTH == "optional"
        if scheme.lower() == "bearer" and text:
            now = timezone.now()
            key = ApiKey.objects.valid_for(text, now)
            if key is not None:
                key.touch(now)
                return key.project, key
            if not optional:
                message = f"Incorrect API key provided: {_masked(text)}. Keys are issued in the admin."
                raise ApiError(message, code="invalid_api_key", http_status=401, headers=_CHALLENGE)
        if optional:
            return Project.default(), None
        raise ApiError("Missing bearer or basic authentication in header", http_status=401, headers=_CHALLENGE)


class HasProject(BasePermission):
    """Let a request through that acts for a project."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Return whether authentication found a project."""
        return isinstance(request.user, Project)
