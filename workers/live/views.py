"""The live routes as Django knows them: the rules that admit a request, and their description."""

from django.core.exceptions import DisallowedHost
from django.http import HttpRequest
from django.urls import URLPattern, path
from rest_framework.exceptions import UnsupportedMediaType
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from batches.validation import RUNNABLE
from vbatch_site.models import Scope
from vbatch_site.openai.errors import ApiError
from vbatch_site.openai.parsers import refuse_encoded
from workers import schema


class LiveView(APIView):
    """A live route. workers.live.app answers its POST on the event loop; Django gets what is left, and refuses it."""

    scope = Scope.LIVE

    @classmethod
    def admit(cls, request: HttpRequest) -> Request:
        """Return a request as views see it; raise what refuses it: its key, scope, limits or type of body."""
        try:
            request.get_host()
        except DisallowedHost:
            raise ApiError("Bad Request.") from None
        view = cls()
        view.args, view.kwargs = (), {}
        asked = view.initialize_request(request)
        view.request = asked
        view.initial(asked)
        refuse_encoded(asked)
        if view.get_content_negotiator().select_parser(asked, view.get_parsers()) is None:
            raise UnsupportedMediaType(request.content_type or "")
        return asked

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
