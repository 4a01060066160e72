"""Item 97: the Models API."""

from urllib.parse import quote

import pytest

from vbatch_site.tests.contract.forms import assert_refused
from vbatch_site.tests.servers import EMBEDDING_MODEL, MODEL, Server

TUNED = "ft:gpt-4o/x y:org::1"
KEYS = {"id", "object", "created", "owned_by", "shutdown_date"}


@pytest.fixture(scope="module")
def tuned(sim_server: Server) -> str:
    """The name of a model that has every sign that could be mistaken on a path."""
    sim_server.query(
        "INSERT INTO workers_servedmodel (name, source, engine_args, endpoints, enabled, created_at, load_error) "
        "VALUES (%s, 'tuned', '', '[\"/v1/chat/completions\"]', true, now(), '') RETURNING 1",
        TUNED,
    )
    return TUNED


def test_item_97_models_are_listed(sim_server: Server) -> None:
    status, _, page = sim_server.request("GET", "/v1/models")
    assert (status, page["object"]) == (200, "list")
    assert {MODEL, EMBEDDING_MODEL} <= {model["id"] for model in page["data"]}
    for model in page["data"]:
        assert set(model) >= KEYS
        assert model["object"] == "model"
        assert isinstance(model["created"], int) and isinstance(model["owned_by"], str)
        assert model["shutdown_date"] is None


@pytest.mark.parametrize("raw", [False, True], ids=["encoded", "raw"])
def test_item_97_a_model_is_found_under_its_name(sim_server: Server, tuned: str, raw: bool) -> None:
    for name in (MODEL, tuned):
        path = quote(name, safe="/:" if raw else "")
        status, _, model = sim_server.request("GET", f"/v1/models/{path}")
        assert (status, model["id"]) == (200, name)
        assert set(model) >= KEYS


def test_item_97_an_unknown_model_is_404(sim_server: Server) -> None:
    answer = sim_server.request("GET", "/v1/models/no/such%2Fmodel")
    message = "The model 'no/such/model' does not exist"
    assert_refused(answer, 404, message, param="model", code="model_not_found")


def test_item_97_a_disabled_model_is_neither_listed_nor_found(sim_server: Server, tuned: str) -> None:
    sim_server.query("UPDATE workers_servedmodel SET enabled = false WHERE name = %s RETURNING 1", tuned)
    try:
        assert tuned not in {model["id"] for model in sim_server.request("GET", "/v1/models")[2]["data"]}
        assert sim_server.request("GET", f"/v1/models/{quote(tuned, safe='')}")[0] == 404
    finally:
        sim_server.query("UPDATE workers_servedmodel SET enabled = true WHERE name = %s RETURNING 1", tuned)
