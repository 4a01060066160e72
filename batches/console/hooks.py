"""Webhook endpoints and what was sent to them."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse

from batches.webhooks import deliveries, endpoints, payload
from batches.webhooks.models import DeliveryState, WebhookDelivery, WebhookEndpoint
from vbatch_site.console.pages import back, complain, error_text, page, say, show
from vbatch_site.console.registry import Notice
from vbatch_site.console.roles import Right, may
from vbatch_site.console.tables import Query, newest_first
from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError

_TONES = {"delivered": "success", "exhausted": "danger", "pending": "info"}
_ENDPOINTS_SHOWN = 200


def told(delivery: WebhookDelivery) -> WebhookDelivery:
    """Add a delivery's colour."""
    shown: Any = delivery
    shown.tone = _TONES.get(delivery.state, "warning")
    return delivery


def warnings() -> list[Notice]:
    """Return what the dashboard says about webhooks."""
    return [Notice(text, reverse("console:webhooks")) for text in deliveries.warnings()]


@page()
def webhooks(request: HttpRequest) -> HttpResponse:
    """List endpoints and deliveries."""
    return _list(request)


def _list(
    request: HttpRequest, values: dict[str, Any] | None = None, error: str = "", status: int = 200
) -> HttpResponse:
    query = Query(request, "state", "endpoint", "event", "before")
    rows = WebhookDelivery.objects.defer("payload", "log")
    for name, field in (("state", "state"), ("endpoint", "endpoint"), ("event", "event_type")):
        if query[name]:
            rows = rows.filter(**{field: query[name]})
    listed = newest_first(rows, query)
    context = {
        "title": "Webhooks",
        "query": query,
        "endpoints": WebhookEndpoint.objects.listed().select_related("project")[:_ENDPOINTS_SHOWN],
        "page": listed,
        "rows": [told(row) for row in listed.rows],
        "choices": query.choices("state", {state.value: state.value.capitalize() for state in DeliveryState}),
        "kinds": payload.EVENT_TYPES,
        "projects": Project.objects.filter(deleted_at=None),
        "values": values or {"event_types": payload.DEFAULT_EVENTS, "project": Project.default().pk},
        "error": error,
    }
    return show(request, "console/batches/webhooks.html", context, status=status)


@page(Right.ADMINISTER, methods=("POST",))
def create(request: HttpRequest) -> HttpResponseBase:
    """Make an endpoint and show its secret, this once."""
    form = request.POST
    values = {**form.dict(), "event_types": form.getlist("event_types")}
    try:
        project = Project.objects.get(pk=int(form.get("project", "")), deleted_at=None)
        names = {name: form.get(name, "").strip() for name in ("name", "url")}
        endpoint, secret = endpoints.create(project, {**names, "event_types": form.getlist("event_types")})
    except (ValueError, Project.DoesNotExist):
        return _list(request, values, "Choose a project.", 422)
    except ApiError as error:
        return _list(request, values, error_text(error), 422)
    return _shown_once(request, endpoint, secret)


def _shown_once(request: HttpRequest, endpoint: WebhookEndpoint, secret: str) -> HttpResponse:
    context = {"title": "Webhook secret", "endpoint": endpoint, "secret": secret}
    return show(request, "console/batches/webhook_secret.html", context)


@page(Right.ADMINISTER, methods=("POST",))
def act(request: HttpRequest, endpoint_id: str, action: str) -> HttpResponseBase:
    """Test, rotate, switch or delete an endpoint."""
    endpoint = get_object_or_404(WebhookEndpoint.objects.listed(), pk=endpoint_id)
    try:
        match action:
            case "rotate":
                return _shown_once(
                    request, endpoint, endpoints.rotate(endpoint, {"keep_old_secret_active_for_24_hours": True})
                )
            case "test":
                answer = endpoints.send_test(endpoint, payload.EventType(payload.DEFAULT_EVENTS[0]))
                if answer.succeeded:
                    say(request, f"{endpoint} answered {answer.status}.")
                else:
                    complain(request, f"{endpoint}: {answer.error or f'answered {answer.status}'}")
            case "delete":
                endpoints.delete(endpoint)
                say(request, f"{endpoint} is deleted; its deliveries stay to be seen.")
            case "enable":
                deliveries.enable(endpoint)
                say(request, f"{endpoint} is enabled.")
            case "disable":
                deliveries.disable(endpoint, f"switched off by {request.user}")
                say(request, f"{endpoint} is disabled.")
    except ApiError as error:
        complain(request, error_text(error))
    return back(request, reverse("console:webhooks"))


@page()
def delivery(request: HttpRequest, delivery_id: str) -> HttpResponse:
    """Show one delivery and its attempts."""
    found = told(get_object_or_404(WebhookDelivery.objects.select_related("endpoint"), pk=delivery_id))
    context = {
        "title": found.event_type,
        "delivery": found,
        "payload": bytes(found.payload) if may(request.user, Right.VIEW) else b"",
    }
    return show(request, "console/batches/delivery.html", context)


@page(Right.OPERATE, methods=("POST",))
def redeliver(request: HttpRequest, delivery_id: str) -> HttpResponseBase:
    """Send a delivery again, under the same id."""
    found = get_object_or_404(WebhookDelivery, pk=delivery_id)
    if deliveries.redeliver(found):
        say(request, "The delivery is being sent again.")
    else:
        complain(request, "Its endpoint is disabled or deleted.")
    return back(request, reverse("console:delivery", args=[found.pk]))
