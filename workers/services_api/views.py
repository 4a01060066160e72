"""The Services API."""

from collections.abc import Sequence
from itertools import groupby

import msgspec
from django.db.models import QuerySet
from django.http import HttpResponse
from rest_framework.response import Response
from rest_framework.views import APIView

from vbatch_site.models import Project, Scope
from vbatch_site.openai.auth import ApiRequest
from vbatch_site.openai.errors import ApiError, Json, check_bounds, missing, not_supported, wrong_type
from workers import recipes, services
from workers.launchers import LaunchError
from workers.models import ENDED_SERVICES, Service, ServiceState
from workers.recipes import Recipe, RecipeError
from workers.services_api import engines, schema
from workers.services_api.wire import group_dict, group_status, recipe_dict, service_dict, target_dict

NEWEST = 1000  # services in a list; older ones are found by their id
MAX_TOKENS = 500
LARGEST_MAX_TOKENS = 1_000_000
TEMPERATURE = 0.7
HOTTEST = 2.0
LOG_SEPARATOR = "\n==> {} <==\n"


def owned(project: Project) -> "QuerySet[Service]":
    """Return a project's services, newest first."""
    return services.launched().filter(project=project).exclude(job_id="").select_related("model")


def find(project: Project, service_id: str) -> list[Service]:
    """Return the project's service of this id, or the replicas of this group; raise a 404."""
    wanted = service_id.replace("\0", "")
    if wanted.startswith("sg-"):
        found = list(owned(project).filter(group_id=wanted).order_by("replica_index"))
    else:
        # SLURM starts its ids anew some day: the latest one is meant.
        found = list(owned(project).filter(job_id=wanted)[:1])
    if not found:
        raise ApiError(f"No service found with id '{service_id[:200]}'.", http_status=404)
    return found


def find_group(project: Project, group_id: str) -> list[Service]:
    """Return the replicas of the project's group; raise a 404."""
    if not group_id.startswith("sg-"):
        raise ApiError(f"No service group found with id '{group_id[:200]}'.", http_status=404)
    return find(project, group_id)


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name or path; raise a 404."""
    recipe = recipes.find(name)
    if recipe is None:
        raise ApiError(f"No recipe found with the name '{name[:200]}'.", param="name", http_status=404)
    return recipe


def unavailable(error: LaunchError) -> ApiError:
    """Return the refusal for what a launcher could not do."""
    if error.is_request:
        return ApiError(str(error), param="config", code="refused_by_launcher")
    headers = {"retry-after": "5"}
    return ApiError(str(error), code="launcher_unavailable", kind="server_error", http_status=503, headers=headers)


class ServicesAPIView(APIView):
    """A view for keys that may run services."""

    scope = Scope.SERVICES


def _text(data: Json, name: str) -> str:
    value = data.get(name)
    if value is None:
        raise missing(name)
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    return value


@schema.services
class ServicesView(ServicesAPIView):
    """Start and list services."""

    def post(self, request: ApiRequest) -> Response:
        """Start what a recipe describes."""
        name = _text(request.data, "recipe_name")
        recipe = recipes.find(name)
        if recipe is None:
            known = ", ".join(sorted(recipes.load()))
            raise ApiError(
                f"Unknown recipe: '{name[:200]}'. Recipes are: {known}.", param="recipe_name", code="unknown_recipe"
            )
        try:
            made = services.create(request.user, recipe, recipe.resolve(request.data.get("config")))
        except RecipeError as error:
            raise ApiError(str(error), param=error.param, code=error.code) from None
        except LaunchError as error:
            raise unavailable(error) from None
        return Response(_whole(made))

    def get(self, request: ApiRequest) -> Response:
        """List services, newest first."""
        return Response([service_dict(row) for row in owned(request.user)[:NEWEST]])


@schema.targets
class TargetsView(ServicesAPIView):
    """What Prometheus may scrape."""

    def get(self, request: ApiRequest) -> Response:
        """List running services with their labels."""
        rows = owned(request.user).filter(state=ServiceState.RUNNING)
        return Response([target_dict(row) for row in rows])


def _whole(rows: Sequence[Service]) -> Json:
    """Return a group for replicas that were asked for together, else the service."""
    return dict(group_dict(rows) if rows[0].replica_index is not None else service_dict(rows[0]))


def _cancel(rows: Sequence[Service]) -> int:
    """Cancel services; return how many had not ended."""
    live = [row for row in rows if not row.is_ended]
    try:
        for row in live:
            services.cancel(row)
    except LaunchError as error:
        raise unavailable(error) from None
    return len(live)


def _check_status(data: Json) -> None:
    status = _text(data, "status")
    if status != ServiceState.CANCELLED:
        raise not_supported("status", status[:100], [ServiceState.CANCELLED])


@schema.service
class ServiceView(ServicesAPIView):
    """One service, or a group by its id."""

    def get(self, request: ApiRequest, service_id: str) -> Response:
        """Show it."""
        rows = find(request.user, service_id)
        return Response(group_dict(rows) if service_id.startswith("sg-") else service_dict(rows[0]))

    def delete(self, request: ApiRequest, service_id: str) -> Response:
        """Cancel it; what has ended already stays as it is."""
        return Response(_cancelled(find(request.user, service_id), service_id))


def _cancelled(rows: Sequence[Service], service_id: str) -> Json:
    stopped = _cancel(rows)
    status = group_status(rows)
    message = (
        f"Service {service_id} was cancelled." if stopped else f"Service {service_id} had ended already: {status}."
    )
    return {"service_id": service_id, "status": status, "message": message}


@schema.status
class StatusView(ServicesAPIView):
    """How a service is."""

    def get(self, request: ApiRequest, service_id: str) -> Response:
        """Show it."""
        rows = find(request.user, service_id)
        error = next((row.error for row in rows if row.error), None)
        return Response({"status": group_status(rows), "error": error})

    def post(self, request: ApiRequest, service_id: str) -> Response:
        """Cancel it."""
        rows = find(request.user, service_id)
        _check_status(request.data)
        return Response(_cancelled(rows, service_id))


@schema.logs
class LogsView(ServicesAPIView):
    """What a service wrote."""

    def get(self, request: ApiRequest, service_id: str) -> Response:
        """Show the end of it, of each replica for a group."""
        rows = find(request.user, service_id)
        if not service_id.startswith("sg-"):
            return Response({"service_id": service_id, "logs": services.logs(rows[0])})
        found = [LOG_SEPARATOR.format(row.job_id) + services.logs(row) for row in rows]
        return Response({"service_id": service_id, "logs": "\n".join(found).strip()})


@schema.metrics
class MetricsView(ServicesAPIView):
    """What an engine measures."""

    def get(self, request: ApiRequest, service_id: str) -> HttpResponse:
        """Show its page; of a group, one replica's."""
        _, page = engines.ask(find(request.user, service_id), "GET", "/metrics")
        return HttpResponse(page, content_type="text/plain; version=0.0.4; charset=utf-8")


@schema.groups
class GroupsView(ServicesAPIView):
    """All groups."""

    def get(self, request: ApiRequest) -> Response:
        """List groups, newest first."""
        rows = owned(request.user).exclude(group_id="")[:NEWEST]
        ordered = sorted(rows, key=lambda row: (row.group_id, row.replica_index or 0))
        found = [list(replicas) for _, replicas in groupby(ordered, key=lambda row: row.group_id)]
        found.sort(key=lambda replicas: replicas[0].created_at, reverse=True)
        return Response([group_dict(replicas) for replicas in found])


@schema.group
class GroupView(ServicesAPIView):
    """One group."""

    def get(self, request: ApiRequest, group_id: str) -> Response:
        """Show it with its replicas."""
        return Response(group_dict(find_group(request.user, group_id)))

    def delete(self, request: ApiRequest, group_id: str) -> Response:
        """Cancel all replicas."""
        return Response(_group_cancelled(find_group(request.user, group_id), group_id))


def _group_cancelled(rows: Sequence[Service], group_id: str) -> Json:
    stopped = _cancel(rows)
    message = f"{stopped} replicas of {group_id} were cancelled."
    return {"group_id": group_id, "status": group_status(rows), "replicas_stopped": stopped, "message": message}


@schema.group_status
class GroupStatusView(ServicesAPIView):
    """How a group is."""

    def get(self, request: ApiRequest, group_id: str) -> Response:
        """Show it."""
        found = group_dict(find_group(request.user, group_id))
        return Response(
            {
                "group_id": group_id,
                "status": found["status"],
                "total_replicas": found["total_replicas"],
                "running_replicas": found["running_replicas"],
            }
        )

    def post(self, request: ApiRequest, group_id: str) -> Response:
        """Cancel all replicas."""
        rows = find_group(request.user, group_id)
        _check_status(request.data)
        return Response(_group_cancelled(rows, group_id))


@schema.recipes
class RecipesView(ServicesAPIView):
    """What can be started."""

    def get(self, request: ApiRequest) -> Response:
        """List recipes, or show the one that `name` or `path` says."""
        name = request.query_params.get("name") or request.query_params.get("path")
        if name:
            return Response(recipe_dict(find_recipe(name)))
        return Response([recipe_dict(recipe) for recipe in recipes.load().values()])


@schema.recipe
class RecipeView(ServicesAPIView):
    """One recipe."""

    def get(self, request: ApiRequest, category: str, name: str) -> Response:
        """Show it."""
        return Response(recipe_dict(find_recipe(f"{category}/{name}")))


@schema.vllm_services
class VllmServicesView(ServicesAPIView):
    """Services that can be asked, or soon."""

    def get(self, request: ApiRequest) -> Response:
        """List them."""
        rows = owned(request.user).exclude(state__in=ENDED_SERVICES)[:NEWEST]
        names = ("id", "name", "recipe_name", "model", "endpoint", "status")
        found = [dict(service_dict(row)) for row in rows]
        return Response({"vllm_services": [{name: service[name] for name in names} for service in found]})


@schema.vllm_models
class VllmModelsView(ServicesAPIView):
    """What a service answers for."""

    def get(self, request: ApiRequest, service_id: str) -> Response:
        """List its models, adapters too."""
        service, answer = engines.ask(find(request.user, service_id), "GET", "/v1/models")
        models = [model["id"] for model in msgspec.json.decode(answer)["data"]]
        return Response({"success": True, "models": models, "service_id": service_id, "endpoint": service.url})


@schema.vllm_prompt
class VllmPromptView(ServicesAPIView):
    """One prompt."""

    def post(self, request: ApiRequest, service_id: str) -> Response:
        """Answer it; of a group, any running replica does."""
        rows = find(request.user, service_id)
        data = request.data
        text = _text(data, "prompt")
        model = rows[0].model.name if data.get("model") is None else _text(data, "model")
        max_tokens = data.get("max_tokens", MAX_TOKENS)
        if not isinstance(max_tokens, int) or isinstance(max_tokens, bool):
            raise wrong_type("max_tokens", "an integer", max_tokens)
        check_bounds("max_tokens", max_tokens, 1, LARGEST_MAX_TOKENS)
        temperature = data.get("temperature", TEMPERATURE)
        if not isinstance(temperature, int | float) or isinstance(temperature, bool):
            raise wrong_type("temperature", "a decimal", temperature)
        if not 0 <= temperature <= HOTTEST:
            raise ApiError(
                f"Invalid 'temperature': expected a value from 0 to {HOTTEST:g}, but got {temperature}.",
                param="temperature",
                code="invalid_value",
            )
        return Response(engines.prompt(rows, text, model, max_tokens, float(temperature)))
