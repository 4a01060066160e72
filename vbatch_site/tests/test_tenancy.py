"""Nothing of one project is visible to another, on any route: the routes are taken from the URL configuration."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone

from batches.models import Batch
from batches.states import BatchStatus
from batches.validate import validate
from batches.webhooks import endpoints
from batches.webhooks.events import draft
from batches.webhooks.models import WebhookEndpoint
from batches.webhooks.payload import EventType
from files import storage
from files.models import File
from files.parts import begin
from files.uploads import announce
from vbatch_site.models import ApiKey, Project
from vbatch_site.tests.servers import MODEL
from workers.models import ServedModel, Service

pytestmark = pytest.mark.django_db

API = ("/v1/", "/api/")
METHODS = ("get", "post", "put", "patch", "delete")

# Routes that everybody may see, with the reason.
PUBLIC = {
    "/health": "asked by load balancers",
    "/ready": "says of each part ok, failed or unknown",
    "/": "says how to connect",
    "/llms.txt": "says how to connect",
    "/favicon.ico": "an image",
    "/console": "leads to /console/",
    "/docs": "describes the API",
    "/docs/": "describes the API",
    "/api/schema/": "describes the API",
    "/admin/login/": "where people log in",
    "/admin/logout/": "ends a session, and only one's own",
    "/admin/jsi18n/": "words of the admin's scripts",
}
# Path parameters that name what all projects share.
SHARED = {"/v1/models/{name}": "the catalogue", "/api/v1/recipes/{category}/{name}": "what can be started"}


class Route(NamedTuple):
    """One path of the URL configuration."""

    path: str
    callback: Any

    @property
    def parameters(self) -> list[str]:
        return re.findall(r"{(\w+)}", self.path)

    @property
    def methods(self) -> list[str]:
        return [method for method in METHODS if hasattr(getattr(self.callback, "cls", None), method)]


def _walk(patterns: list[Any], prefix: str = "/") -> Iterator[Route]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern).removeprefix("^").removesuffix("$")
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern):
            route = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route)
            yield Route(re.sub(r"\(\?P{(\w+)}[^)]*\)", r"{\1}", route), pattern.callback)


ROUTES = list(_walk(get_resolver().url_patterns))
API_ROUTES = [route for route in ROUTES if route.path.startswith(API) and route.path not in PUBLIC]
PAGES = [route for route in ROUTES if not route.path.startswith(API) and route.path not in PUBLIC]
CASES = [(r, m) for r in API_ROUTES if r.parameters and r.path not in SHARED for m in r.methods]


def _file(project: Project) -> str:
    file = announce(project, "vision", "a", 1, None)
    with storage.writing(file.path) as out:
        out.write(b"x")
    file.arrive()
    return file.pk


def _upload(project: Project) -> str:
    return begin(project, {"bytes": 0, "filename": "f", "mime_type": "text/plain", "purpose": "vision"}).pk


def _batch(project: Project) -> str:
    batch = Batch.begin(
        window=timedelta(hours=24),
        project=project,
        endpoint="/v1/chat/completions",
        input_file_id="file-x",
        completion_window="24h",
    )
    return batch.pk


def _endpoint(project: Project) -> str:
    wanted = {"name": "n", "url": "https://nobody.invalid/", "event_types": ["batch.completed"]}
    return endpoints.create(project, wanted)[0].pk


def _delivery(project: Project) -> str:
    endpoint = WebhookEndpoint.objects.get(pk=_endpoint(project))
    delivery = draft(endpoint, "evt_x", EventType.COMPLETED, b"{}", timezone.now())
    delivery.save()
    return delivery.pk


def _service(project: Project) -> str:
    job_id = f"local-{uuid4().hex}"
    model = ServedModel.objects.get(name=MODEL)
    ended = {"state": "completed", "launcher": "local", "group_id": f"sg-{job_id}", "replica_index": 0}
    Service.objects.create(project=project, model=model, job_id=job_id, **ended)
    return job_id


# How an object is made that a path parameter of this name stands for. A new kind of object needs a line here.
RECIPES: dict[str, Callable[[Project], str]] = {
    "file_id": _file,
    "upload_id": _upload,
    "batch_id": _batch,
    "service_id": _service,
    "group_id": lambda project: f"sg-{_service(project)}",
    "webhook_endpoint_id": _endpoint,
    "webhook_delivery_id": _delivery,
}


def _key(project: Project) -> dict[str, str]:
    return {"Authorization": f"Bearer {ApiKey.issue(project, 'test')[1]}"}


@pytest.fixture
def projects() -> tuple[Project, Project]:
    return Project.objects.create(name="a"), Project.objects.create(name="b")


@pytest.mark.parametrize("route", API_ROUTES, ids=lambda route: route.path)
def test_every_route_of_the_api_has_a_recipe(route: Route) -> None:
    assert route.methods, "a route below /v1 and /api is a DRF view, so that its key is checked"
    if route.path not in SHARED:
        assert set(route.parameters) <= set(RECIPES), "say how to make the object that this parameter stands for"


@pytest.mark.parametrize("route", API_ROUTES, ids=lambda route: route.path)
def test_every_route_of_the_api_needs_a_key(route: Route) -> None:
    path = route.path.format(**dict.fromkeys(route.parameters, "x"))
    for method in route.methods:
        assert getattr(Client(), method)(path).status_code == 401, method


@pytest.mark.parametrize(("route", "method"), CASES, ids=lambda case: getattr(case, "path", case))
def test_another_projects_object_is_not_there(projects: tuple[Project, Project], route: Route, method: str) -> None:
    owner, other = projects
    path = route.path.format(**{name: RECIPES[name](owner) for name in route.parameters})
    ask = getattr(Client(), method)
    body = {} if method == "get" else {"data": b"{}", "content_type": "application/json"}
    refused = ask(path, headers=_key(other), **body)
    assert refused.status_code == 404, refused.content
    # A made-up id is refused in the same words, so that nobody learns that the object is there.
    made_up = route.path.format(**{name: f"{RECIPES[name](owner)[:-4]}zzzz" for name in route.parameters})
    unknown = ask(made_up, headers=_key(other), **body)
    assert unknown.status_code == 404
    assert _shape(unknown.json(), made_up) == _shape(refused.json(), path)
    assert ask(path, headers=_key(owner), **body).status_code != 404


def _shape(body: Any, path: str) -> str:
    return re.sub(r"\b(file|batch|upload|[a-z]+)[-_]\w{12,}", "ID", str(body))


@pytest.mark.parametrize(
    "route", [r for r in API_ROUTES if not r.parameters and "get" in r.methods], ids=lambda route: route.path
)
def test_a_list_shows_only_the_projects_own(projects: tuple[Project, Project], route: Route) -> None:
    owner, other = projects
    made = [recipe(owner) for recipe in RECIPES.values()]
    shown = Client().get(route.path, headers=_key(other)).content.decode()
    assert not [object_id for object_id in made if object_id in shown]


@pytest.mark.parametrize("route", PAGES, ids=lambda route: route.path)
def test_every_page_wants_a_login(route: Route) -> None:
    path = re.sub(r"[\\^$?]|\(.*?\)", "", route.path.format(**dict.fromkeys(route.parameters, "1")))
    answer = Client().get(path)
    is_login = answer.status_code == 302 and "/login/" in answer.headers["location"]
    assert is_login or answer.status_code in (401, 403, 404), (path, answer.status_code)


def test_a_batch_of_another_projects_file_does_not_find_it(projects: tuple[Project, Project]) -> None:
    owner, other = projects
    wanted = {"input_file_id": _file(owner), "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    File.objects.update(purpose="batch")
    answer = Client().post("/v1/batches", wanted, content_type="application/json", headers=_key(other))
    assert answer.status_code == 200
    validate(answer.json()["id"])
    batch = Batch.objects.get(pk=answer.json()["id"])
    assert batch.status == BatchStatus.FAILED
    assert "does not have access to it" in str(batch.errors)
