"""The OpenAPI description is complete, and true: generated requests meet nothing that it does not announce."""

import re
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
import schemathesis
from django.core.management import call_command
from django.urls import URLPattern, URLResolver, get_resolver
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from batches.serializers import BatchDict
from files.serializers import FileDict, UploadDict
from vbatch_site.tests.contract.forms import multipart
from vbatch_site.tests.servers import MODEL, Server, chat_line
from workers.schema import ModelDict

CASES = 10  # for each operation and kind of case
SECONDS = 60  # for an answer; some look up a name that nobody has, which takes long without a network
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
DOCUMENT: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)
LOADED: list[Any] = list(schemathesis.openapi.from_dict(DOCUMENT).get_all_operations())
OPERATIONS = {found.ok().label: found.ok() for found in LOADED}

bounded = settings(
    max_examples=CASES,
    deadline=None,
    # The same cases each time: a test that fails by chance tells the wrong person.
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="session")
def fuzz_key(sim_server: Server) -> str:
    """A key of a project of its own, so that no other test sees what is made here."""
    return sim_server.new_key("fuzz")


@pytest.fixture
def known(sim_server: Server, fuzz_key: str) -> dict[str, str]:
    """New objects, one of each kind, by their path parameters."""
    lines = multipart([("purpose", None, "batch"), ("file", "f", chat_line("a"))])
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}
    file = sim_server.request("POST", "/v1/files", lines, key=fuzz_key, headers=kind)[2]
    wanted = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = sim_server.request("POST", "/v1/batches", wanted, key=fuzz_key)[2]
    wanted = {"bytes": 0, "filename": "f", "mime_type": "text/plain", "purpose": "vision"}
    upload = sim_server.request("POST", "/v1/uploads", wanted, key=fuzz_key)[2]
    wanted = {"name": "n", "url": "https://nobody.invalid/", "event_types": ["batch.expired"]}
    endpoint = sim_server.request("POST", "/v1/webhook_endpoints", wanted, key=fuzz_key)[2]
    test = {"event_type": "batch.expired"}
    sim_server.request("POST", f"/v1/webhook_endpoints/{endpoint['id']}/test", test, key=fuzz_key)
    (delivery,) = sim_server.request(
        "GET", f"/v1/webhook_deliveries?webhook_endpoint_id={endpoint['id']}", key=fuzz_key
    )[2]["data"]  # fmt: skip
    return {
        "file_id": file["id"],
        "batch_id": batch["id"],
        "upload_id": upload["id"],
        "name": MODEL,
        "webhook_endpoint_id": endpoint["id"],
        "webhook_delivery_id": delivery["id"],
        "category": "inference",
        **_group(sim_server, fuzz_key),
    }


def _group(server: Server, key: str) -> dict[str, str]:
    """Return the ids of a group and of a replica: the same ones each time, because each is a process."""

    def groups() -> list[dict[str, Any]]:
        return list(server.request("GET", "/api/v1/service-groups", key=key)[2])

    if not groups():
        config = {"replicas": 1, "environment": {"VLLM_MODEL": MODEL}, "resources": {"gpu": None}}
        wanted = {"recipe_name": "inference/vllm-replicas", "config": config}
        server.request("POST", "/api/v1/services", wanted, key=key)
    return {"service_id": groups()[0]["replicas"][0]["id"], "group_id": groups()[0]["id"]}


def _check(server: Server, key: str, strategy: Any) -> None:
    @bounded
    @given(case=strategy)
    def run(case: Any) -> None:
        case.call_and_validate(
            base_url=f"http://127.0.0.1:{server.port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=SECONDS,
            checks=CHECKS,
        )

    run()


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("label", OPERATIONS)
def test_generated_requests_meet_only_what_is_described(
    sim_server: Server, fuzz_key: str, label: str, mode: GenerationMode
) -> None:
    operation = OPERATIONS[label]
    if mode == GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.path_parameters):
        pytest.skip("it takes nothing that could be wrong")
    _check(sim_server, fuzz_key, operation.as_strategy(generation_mode=mode))


@pytest.mark.parametrize("label", [label for label in OPERATIONS if "{" in label])
def test_generated_requests_on_objects_that_exist_meet_only_what_is_described(
    sim_server: Server, fuzz_key: str, known: dict[str, str], label: str
) -> None:
    names = re.findall(r"{(\w+)}", label)
    _check(sim_server, fuzz_key, OPERATIONS[label].as_strategy(path_parameters={name: known[name] for name in names}))


def _routes(patterns: list[URLPattern | URLResolver], prefix: str = "") -> Iterator[str]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _routes(pattern.url_patterns, route)
        else:
            yield "/" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route)


def test_every_route_of_the_api_is_described() -> None:
    routes = {route for route in _routes(get_resolver().url_patterns) if route.startswith(("/v1/", "/api/v1/"))}
    assert routes == set(DOCUMENT["paths"])


def test_every_operation_says_what_it_needs_and_answers() -> None:
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["summary"], where
            assert operation["security"] == [{"bearer": []}], where
            assert {"200", "401", "500"} <= set(operation["responses"]), where
            for status, response in operation["responses"].items():
                assert response["content"], where
                reference = response["content"].get("application/json", {}).get("schema", {}).get("$ref", "")
                assert status == "200" or reference.endswith("/Error"), where


def test_the_description_is_valid_and_nothing_in_it_was_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("spectacular", validate=True, fail_on_warn=True, format="openapi-json")
    assert '"openapi": "3.1.0"' in capsys.readouterr().out


def test_an_answer_has_the_described_keys_and_no_others(
    sim_server: Server, fuzz_key: str, known: dict[str, str]
) -> None:
    def keys(path: str) -> set[str]:
        return set(sim_server.request("GET", path, key=fuzz_key)[2])

    assert keys(f"/v1/batches/{known['batch_id']}") == set(get_type_hints(BatchDict))
    assert keys(f"/v1/models/{known['name']}") == set(get_type_hints(ModelDict))
    upload = sim_server.request(
        "POST", f"/v1/uploads/{known['upload_id']}/complete", {"part_ids": []}, key=fuzz_key
    )[2]  # fmt: skip
    assert set(upload) == set(get_type_hints(UploadDict))
    assert set(upload["file"]) == keys(f"/v1/files/{upload['file']['id']}") == set(get_type_hints(FileDict))


def test_the_description_is_served_to_programs_without_a_key(sim_server: Server) -> None:
    status, headers, document = sim_server.request("GET", "/api/schema/", key=None)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert set(document["paths"]) == set(DOCUMENT["paths"])
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"


def test_the_pages_load_nothing_from_another_host(sim_server: Server) -> None:
    status, _, page = sim_server.request("GET", "/docs/", key=None, headers={"Accept": "text/html"})
    assert status == 200
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.decode())
    assert len(loaded) >= 4
    for address in loaded:
        assert address.startswith(("/static/", "/docs/"))
        assert sim_server.request("GET", address, key=None)[0] == 200
    assert not re.findall(r"https?://", page.decode())
    assert sim_server.request("GET", "/docs", key=None)[1]["location"] == "/docs/"
