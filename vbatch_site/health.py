"""Is the server alive: asked by load balancers and by people, without a key."""

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe


@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """Answer 200 while this process can reach its database, 503 otherwise."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        database = "ok"
    except DatabaseError:
        database = "unreachable"
    status = "ok" if database == "ok" else "unavailable"
    body = {"status": status, "database": database, "engine": settings.VBATCH_ENGINE}
    return JsonResponse(body, status=200 if status == "ok" else 503)
