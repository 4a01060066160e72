"""Services: started from a recipe by a form, watched, cancelled."""

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse

from vbatch_site.console.pages import DASHBOARD_SECONDS, back, complain, page, say, show
from vbatch_site.console.roles import Right, may
from vbatch_site.console.tables import Query, newest_first
from vbatch_site.models import Project
from workers import recipes
from workers import services as launched
from workers.console.machines import service_tone
from workers.launchers import LaunchError
from workers.models import ENDED_SERVICES, Service
from workers.recipes import Parameter, Recipe, RecipeError

_STATES: dict[str, str] = {"live": "Live", **{str(state): str(state.label) for state in ENDED_SERVICES}}


@page()
def services(request: HttpRequest) -> HttpResponse:
    """List services, those that workers started for batches too."""
    query = Query(request, "state", "before")
    rows = Service.objects.select_related("model", "worker", "project")
    if query["state"] == "live":
        rows = rows.exclude(state__in=ENDED_SERVICES)
    elif query["state"]:
        rows = rows.filter(state=query["state"])
    listed = newest_first(rows, query)
    for row in listed.rows:
        row.tone = service_tone(row.state)
    context = {
        "title": "Services",
        "query": query,
        "page": listed,
        "choices": query.choices("state", _STATES),
        "recipes": list(recipes.load().values()),
        "seconds": DASHBOARD_SECONDS,
    }
    return show(request, "console/workers/services.html", context, part="console/workers/_services.html")


def _fields(recipe: Recipe, values: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for parameter in recipe.parameters.values():
        default = "" if parameter.default is None else str(parameter.default)
        found.append({"parameter": parameter, "value": values.get(parameter.name, default), "default": default})
    return found


def _config(recipe: Recipe, form: Any) -> dict[str, Any]:
    """Return a form as the API's config: only what differs from the recipe's defaults."""
    config: dict[str, Any] = {"resources": {}, "environment": {}}
    for parameter in recipe.parameters.values():
        if parameter.name not in form:
            continue
        text = form[parameter.name].strip()
        if text == ("" if parameter.default is None else str(parameter.default)):
            continue
        place = config if parameter.location == "root" else config[parameter.location]
        place[parameter.name] = _value(parameter, text)
    return {name: value for name, value in config.items() if value != {}}


def _value(parameter: Parameter, text: str) -> str | None:
    return None if text == "" and parameter.nullable else text


@page(Right.ADMINISTER, methods=("GET", "HEAD", "POST"))
def start(request: HttpRequest, category: str, name: str) -> HttpResponseBase:
    """Ask for a recipe's parameters and start a service; a mistake keeps the form."""
    recipe = recipes.find(f"{category}/{name}")
    if recipe is None:
        return back(request, reverse("console:services"))
    values, error, wrong = {}, "", ""
    if request.method == "POST":
        values = request.POST.dict()
        try:
            project = Project.objects.filter(pk=int(request.POST.get("project", "0")), deleted_at=None).first()
            made = launched.create(project, recipe, recipe.resolve(_config(recipe, request.POST)))
            say(request, f"{len(made)} services are being started." if len(made) > 1 else "The service is starting.")
            return back(request, reverse("console:service", args=[made[0].pk]))
        except RecipeError as fault:
            error, wrong = str(fault), fault.param
        except (LaunchError, ValueError) as fault:
            error = str(fault)
    context = {
        "title": f"Start {recipe.path}",
        "recipe": recipe,
        "fields": _fields(recipe, values),
        "error": error,
        "wrong": wrong,
        "projects": Project.objects.filter(deleted_at=None),
        "default_project": Project.default().pk,
    }
    return show(request, "console/workers/start.html", context, status=422 if error else 200)


@page()
def service(request: HttpRequest, pk: int) -> HttpResponse:
    """Show one service and the end of its log."""
    found: Any = get_object_or_404(Service.objects.select_related("model", "worker", "project"), pk=pk)
    found.tone = service_tone(found.state)
    sees = may(request.user, Right.PROMPTS)
    context = {
        "title": f"{found.model.name}",
        "service": found,
        "log": launched.logs(found) if sees and found.launcher else "",
        "seconds": DASHBOARD_SECONDS,
    }
    return show(request, "console/workers/service.html", context, part="console/workers/_service.html")


@page(Right.ADMINISTER, methods=("POST",))
def cancel(request: HttpRequest, pk: int) -> HttpResponseBase:
    """End a launched service."""
    found = get_object_or_404(launched.launched(), pk=pk)
    try:
        launched.cancel(found)
        say(request, f"The service is {found.state}.")
    except LaunchError as error:
        complain(request, str(error))
    return back(request, reverse("console:service", args=[pk]))
