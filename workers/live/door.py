"""Who may ask live: the rules that Django's views have, asked on the event loop."""

from collections.abc import Awaitable, Callable
from typing import Any

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.exceptions import UnsupportedMediaType

from vbatch_site import limits
from vbatch_site.audit import address_of
from vbatch_site.models import ApiKey, Project, Scope
from vbatch_site.openai.auth import bearer, check_scope, is_trusted_network, unknown_key
from vbatch_site.openai.errors import ApiError
from vbatch_site.openai.parsers import refuse_encoded
from workers.live.rows import Rows


class Door:
    """Admits requests; belongs to one event loop."""

    def __init__(self, rows: Rows, in_thread: Callable[..., Awaitable[Any]]) -> None:
        self._rows = rows
        self._in_thread = in_thread

    async def admit(self, request: HttpRequest) -> int:
        """Return the project that a request acts for; raise what refuses its host, key, scope, rate or type of body."""
        try:
            request.get_host()
        except DisallowedHost:
            raise ApiError("Bad Request.") from None
        project = await self._project(request)
        rate = await limits.take_live_request(project, self._rows.fetch)
        if rate is not None:
            request.rate_headers = rate.headers()  # type: ignore[attr-defined]
            if rate.retry_after is not None:
                raise rate.refusal()
        refuse_encoded(request)
        if (request.content_type or "application/json").lower() != "application/json":
            raise UnsupportedMediaType(request.content_type or "")
        return project.pk

    async def _project(self, request: HttpRequest) -> Project:
        # Asked anew for each request: a revoked key opens nothing from then on, in no process.
        if text := bearer(request):
            now = timezone.now()
            rows = await self._rows.fetch(ApiKey.lookup(), ApiKey.lookup_values(text))
            key = ApiKey.found(rows, text, now)
            if key is not None:
                if key.is_touch_due(now):
                    await self._in_thread(key.touch, now, address_of(request))
                check_scope(key, Scope.LIVE, request.method or "")
                return key.project
        if is_trusted_network():
            project: Project = await self._in_thread(Project.default)
            return project
        raise unknown_key(text)
