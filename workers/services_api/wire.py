"""Services, groups and recipes as they are shown."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NotRequired, TypedDict
from urllib.parse import urlsplit

from workers.models import Service, ServiceState
from workers.recipes import Recipe

Status = Literal["pending", "building", "starting", "running", "completed", "failed", "cancelled"]

# How far a group is: as far as the best of its replicas, and ended as the worst of them did.
_PROGRESS = (ServiceState.RUNNING, ServiceState.STARTING, ServiceState.BUILDING, ServiceState.PENDING)
_ENDS = (ServiceState.FAILED, ServiceState.CANCELLED, ServiceState.COMPLETED)


class NodeJobDict(TypedDict):
    """One job of a group."""

    job_id: str
    node: str | None
    replicas: list[str]


class ServiceDict(TypedDict):
    """One service. Its id is the SLURM job's; on a server without SLURM it begins with `local-`."""

    id: str
    name: str
    type: Literal["single", "replica"]
    recipe_name: str
    model: str
    status: Status
    error: str | None
    endpoint: str | None
    node: str | None
    config: dict[str, Any]
    created_at: str
    ready_at: str | None
    ended_at: str | None
    ends_at: str | None
    group_id: str | None
    replica_index: int | None


class GroupDict(TypedDict):
    """Replicas that were started together. Its id is `sg-` and the id of the first."""

    id: str
    name: str
    type: Literal["replica_group"]
    recipe_name: str
    model: str
    status: Status
    config: dict[str, Any]
    created_at: str
    num_replicas: int
    total_replicas: int
    running_replicas: int
    num_nodes: int
    replicas_per_node: int
    node_jobs: list[NodeJobDict]
    replicas: list[ServiceDict]


class ParameterDict(TypedDict):
    """One thing that a request may set."""

    description: str
    type: Literal["string", "integer", "number", "boolean"]
    default: str | int | float | bool | None
    required: bool
    location: Literal["root", "resources", "environment"]
    choices: NotRequired[list[str]]
    pattern: NotRequired[str]
    minimum: NotRequired[float]
    maximum: NotRequired[float]


class RecipeDict(TypedDict):
    """One recipe, and what holds when a request says nothing."""

    name: str
    category: str
    path: str
    description: str
    version: str
    image: str | None
    resources: dict[str, Any]
    environment: dict[str, Any]
    parameters: dict[str, ParameterDict]


def _time(value: datetime | None) -> str | None:
    return value.isoformat() if value is not None else None


def _status(state: str) -> Status:
    found: Status = "running" if state in (ServiceState.SLEEPING, ServiceState.DRAINING) else state  # type: ignore[assignment]
    return found


def service_dict(service: Service) -> ServiceDict:
    """Return a service; its model is loaded with it."""
    return {
        "id": service.job_id,
        "name": service.name,
        "type": "replica" if service.replica_index is not None else "single",
        "recipe_name": service.recipe,
        "model": service.model.name,
        "status": _status(service.state),
        "error": service.error or None,
        "endpoint": None if service.is_ended else service.url or None,
        "node": service.host or None,
        "config": service.config,
        "created_at": service.created_at.isoformat(),
        "ready_at": _time(service.ready_at),
        "ended_at": _time(service.ended_at),
        "ends_at": _time(service.ends_at),
        "group_id": service.group_id or None,
        "replica_index": service.replica_index,
    }


def group_status(replicas: Sequence[Service]) -> Status:
    """Return one status for all replicas."""
    states = {replica.state for replica in replicas}
    return _status(next(state for state in (*_PROGRESS, *_ENDS) if state in states))


def group_dict(replicas: Sequence[Service]) -> GroupDict:
    """Return a group by its replicas, the first of them first."""
    first = replicas[0]
    nodes = int(first.config.get("resources", {}).get("nodes") or 1)
    return {
        "id": first.group_id,
        "name": first.name,
        "type": "replica_group",
        "recipe_name": first.recipe,
        "model": first.model.name,
        "status": group_status(replicas),
        "config": first.config,
        "created_at": first.created_at.isoformat(),
        "num_replicas": len(replicas),
        "total_replicas": len(replicas),
        "running_replicas": sum(replica.state == ServiceState.RUNNING for replica in replicas),
        "num_nodes": nodes,
        "replicas_per_node": len(replicas) // nodes,
        "node_jobs": [{"job_id": r.job_id, "node": r.host or None, "replicas": [r.job_id]} for r in replicas],
        "replicas": [service_dict(replica) for replica in replicas],
    }


def recipe_dict(recipe: Recipe) -> RecipeDict:
    """Return a recipe."""
    parameters: dict[str, ParameterDict] = {}
    for name, found in recipe.parameters.items():
        shown: dict[str, Any] = {
            "description": found.description,
            "type": found.type,
            "default": found.default,
            "required": found.required,
            "location": found.location,
            "choices": list(found.choices) or None,
            "pattern": found.pattern or None,
            "minimum": found.minimum,
            "maximum": found.maximum,
        }
        optional = ("choices", "pattern", "minimum", "maximum")
        parameters[name] = {k: v for k, v in shown.items() if v is not None or k not in optional}  # type: ignore[assignment]
    return {
        "name": recipe.name,
        "category": recipe.category,
        "path": recipe.path,
        "description": recipe.description,
        "version": recipe.version,
        "image": recipe.image or None,
        "resources": recipe.defaults("resources"),
        "environment": recipe.defaults("environment"),
        "parameters": parameters,
    }


def target_dict(service: Service) -> dict[str, Any]:
    """Return what Prometheus's http_sd takes: where to scrape, and labels."""
    labels = {
        "job": f"service-{service.job_id}",
        "service_id": service.job_id,
        "recipe_name": service.recipe,
        "model": service.model.name,
        "group_id": service.group_id or service.job_id,
        "replica_id": service.job_id,
        "node_job_id": service.job_id,
    }
    return {"targets": [urlsplit(service.url).netloc], "labels": labels}
