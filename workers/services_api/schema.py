"""How the Services API is described."""

from typing import Any, Literal, NotRequired, TypedDict

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema_view

from vbatch_site.openai.schema import of, operation
from workers.services_api.wire import GroupDict, RecipeDict, ServiceDict, Status

SERVICES = "Services"
RECIPES = "Recipes"


class CreateServiceDict(TypedDict):
    """A service to start. `config` holds `environment`, `resources` and the recipe's root parameters."""

    recipe_name: str
    config: NotRequired[dict[str, Any] | None]


class SetStatusDict(TypedDict):
    """The only status that can be set."""

    status: Literal["cancelled"]


class StatusDict(TypedDict):
    """How a service is."""

    status: Status
    error: str | None


class CancelledDict(TypedDict):
    """What a cancel did."""

    service_id: str
    status: Status
    message: str


class GroupStatusDict(TypedDict):
    """How a group is."""

    group_id: str
    status: Status
    total_replicas: int
    running_replicas: int


class GroupCancelledDict(TypedDict):
    """What a group's cancel did."""

    group_id: str
    status: Status
    replicas_stopped: int
    message: str


class LogsDict(TypedDict):
    """The end of a log, at most 200 lines of each replica."""

    service_id: str
    logs: str


class TargetDict(TypedDict):
    """What Prometheus takes."""

    targets: list[str]
    labels: dict[str, str]


class VllmServiceDict(TypedDict):
    """A service in short."""

    id: str
    name: str
    recipe_name: str
    model: str
    endpoint: str | None
    status: Status


class VllmServicesDict(TypedDict):
    """Services that have not ended."""

    vllm_services: list[VllmServiceDict]


class VllmModelsDict(TypedDict):
    """What a service answers for."""

    success: Literal[True]
    models: list[str]
    service_id: str
    endpoint: str


class PromptDict(TypedDict):
    """A prompt for one service."""

    prompt: str
    model: NotRequired[str | None]
    max_tokens: NotRequired[int]
    temperature: NotRequired[float]


class PromptAnswerDict(TypedDict):
    """What the service said."""

    success: Literal[True]
    text: str
    usage: dict[str, Any]
    model: str
    service_id: str
    routed_to: str
    group_id: str | None
    total_replicas: int


def _list(form: type) -> dict[tuple[int, str], Any]:
    return {(200, "application/json"): OpenApiResponse({"type": "array", "items": of(form)}, "OK")}


def _either(*forms: type) -> dict[tuple[int, str], Any]:
    return {(200, "application/json"): OpenApiResponse({"anyOf": [of(form) for form in forms]}, "OK")}


_TEXT = {(200, "text/plain"): OpenApiResponse({"type": "string"}, "Prometheus's text format.")}
_NAME = OpenApiParameter("name", str, description="Only this recipe, by its name or its path; it is not in a list.")
_PATH = OpenApiParameter("path", str, description="As `name`.")
# What SLURM or an engine may answer, or fail to.
_BEHIND = (409, 502, 504)

services = extend_schema_view(
    post=operation(
        "createService",
        tag=SERVICES,
        summary="Start a service or a group",
        body=CreateServiceDict,
        answer=_either(ServiceDict, GroupDict),
    ),
    get=operation("listServices", tag=SERVICES, summary="List services", answer=_list(ServiceDict)),
)
targets = extend_schema_view(
    get=operation("listTargets", tag=SERVICES, summary="Running services for Prometheus", answer=_list(TargetDict))
)
service = extend_schema_view(
    get=operation(
        "retrieveService",
        tag=SERVICES,
        summary="Show a service or a group",
        path="service_id",
        answer=_either(ServiceDict, GroupDict),
    ),
    delete=operation(
        "deleteService", tag=SERVICES, summary="Cancel a service", path="service_id", answer=CancelledDict
    ),
)
status = extend_schema_view(
    get=operation(
        "retrieveServiceStatus", tag=SERVICES, summary="Show a service's status", path="service_id", answer=StatusDict
    ),
    post=operation(
        "setServiceStatus",
        tag=SERVICES,
        summary="Cancel a service",
        path="service_id",
        body=SetStatusDict,
        answer=CancelledDict,
    ),
)
logs = extend_schema_view(
    get=operation("retrieveServiceLogs", tag=SERVICES, summary="Show a log", path="service_id", answer=LogsDict)
)
metrics = extend_schema_view(
    get=operation(
        "retrieveServiceMetrics",
        tag=SERVICES,
        summary="Show an engine's metrics",
        path="service_id",
        answer=_TEXT,
        refuses=_BEHIND,
    )
)
groups = extend_schema_view(
    get=operation("listServiceGroups", tag=SERVICES, summary="List groups", answer=_list(GroupDict))
)
group = extend_schema_view(
    get=operation("retrieveServiceGroup", tag=SERVICES, summary="Show a group", path="group_id", answer=GroupDict),
    delete=operation(
        "deleteServiceGroup", tag=SERVICES, summary="Cancel a group", path="group_id", answer=GroupCancelledDict
    ),
)
group_status = extend_schema_view(
    get=operation(
        "retrieveServiceGroupStatus",
        tag=SERVICES,
        summary="Show a group's status",
        path="group_id",
        answer=GroupStatusDict,
    ),
    post=operation(
        "setServiceGroupStatus",
        tag=SERVICES,
        summary="Cancel a group",
        path="group_id",
        body=SetStatusDict,
        answer=GroupCancelledDict,
    ),
)
recipes = extend_schema_view(
    get=operation(
        "listRecipes",
        tag=RECIPES,
        summary="List recipes, or show one",
        query=[_NAME, _PATH],
        answer={
            (200, "application/json"): OpenApiResponse(
                {"anyOf": [{"type": "array", "items": of(RecipeDict)}, of(RecipeDict)]}, "OK"
            )
        },
        refuses=[404],
    )
)
recipe = extend_schema_view(
    get=operation(
        "retrieveRecipe",
        tag=RECIPES,
        summary="Show a recipe",
        path="category",
        query=[OpenApiParameter("name", str, OpenApiParameter.PATH)],
        answer=RecipeDict,
    )
)
vllm_services = extend_schema_view(
    get=operation(
        "listVllmServices", tag=SERVICES, summary="List services that have not ended", answer=VllmServicesDict
    )
)
vllm_models = extend_schema_view(
    get=operation(
        "listVllmModels",
        tag=SERVICES,
        summary="List what a service answers for",
        path="service_id",
        answer=VllmModelsDict,
        refuses=_BEHIND,
    )
)
vllm_prompt = extend_schema_view(
    post=operation(
        "promptService",
        tag=SERVICES,
        summary="Send a prompt to a service or a group",
        path="service_id",
        body=PromptDict,
        answer=PromptAnswerDict,
        refuses=_BEHIND,
    )
)
