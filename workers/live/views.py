"""The live routes as Django knows them: their methods and their description."""

from django.urls import URLPattern, path
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from batches.validation import RUNNABLE
from vbatch_site.models import Scope
from vbatch_site.openai.errors import ApiError
from workers import schema


class LiveView(APIView):
    """A live route. workers.live.app answers its POST on the event loop; Django gets what is left, and refuses it."""

    scope = Scope.LIVE

    def post(self, request: Request) -> Response:
        """Refuse what came past the ASGI application."""
        raise ApiError("Live requests need the ASGI server.", kind="server_error", http_status=501)


def routes() -> list[URLPattern]:
    """Return the live routes, below /v1/."""
    return [path(endpoint.removeprefix("/v1/"), _described(endpoint).as_view()) for endpoint in RUNNABLE]


def _described(endpoint: str) -> type[LiveView]:
    class OneLiveView(LiveView):
        """One of the live routes; a class of its own, because it has a description of its own."""

    return schema.live(endpoint)(OneLiveView)
