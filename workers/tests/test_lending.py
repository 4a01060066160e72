"""Whose a host's GPUs are, and what is left of services, asked of the database."""

import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone
from pytest_django import Settings

from workers import catalogue, lending, orders, recipes, registry, services
from workers.models import CHAT_ENDPOINTS, Launcher, ServedModel, Service, ServiceState, Worker
from workers.recipes import RecipeError

pytestmark = pytest.mark.django_db

HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with two GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")


def _service(name: str, gpu: int = 1, devices: str | None = None, **fields: Any) -> Service:
    config = {"environment": {"CUDA_VISIBLE_DEVICES": devices}, "resources": {"gpu": gpu}}
    model = ServedModel.objects.earliest("pk")
    fields = {"state": ServiceState.PENDING, "config": config, "gpu_count": gpu} | fields
    return Service.objects.create(model=model, name=name, job_id=name, launcher=Launcher.LOCAL, **fields)


def _engine(worker: str, gpu: str) -> int | None:
    model = ServedModel.objects.earliest("pk")
    return registry.starting(model.name, worker, "http://127.0.0.1:1", [gpu])


def _give(service: Service) -> tuple[bool, list[str], str]:
    given = lending.give(service, HOST)
    service.refresh_from_db()
    return given, service.gpus, service.error


def test_a_service_gets_a_gpu_without_an_engine_and_asks_for_one_where_there_is_none() -> None:
    first, second = _engine("a", "0"), _engine("b", "1")
    waiting = _service("s")
    assert _give(waiting) == (False, ["0"], lending.ENGINES)
    since, has = lending.look(["0"])
    assert (since, has) == (waiting.created_at, False)
    assert lending.look(["1"]) == (None, False)
    # The other slot happens to be free first.
    assert second is not None
    registry.ended(second)
    assert _give(waiting) == (True, ["1"], "")
    assert waiting.state == ServiceState.BUILDING
    assert lending.look(["0"]) == (None, False)
    assert lending.look(["1"]) == (None, True)
    assert _engine("b", "1") is None
    assert first is not None
    registry.ended(first)
    assert _engine("a", "0") is not None


def test_a_dead_workers_engine_is_on_no_gpu() -> None:
    _engine("a", "0")
    Worker.objects.update(seen_at=timezone.now() - timedelta(minutes=1))
    assert _give(_service("s", devices="0"))[0]


def test_what_other_services_have_is_waited_for_and_nobody_is_asked_for_it() -> None:
    assert _give(_service("s", gpu=2))[0]
    waiting = _service("t")
    assert _give(waiting) == (False, [], lending.OTHERS)
    assert lending.look(["0", "1"]) == (None, True)
    # A cancelled one has its GPUs until its process is gone.
    Service.objects.filter(name="s").update(state=ServiceState.CANCELLED, pid=1)
    assert not _give(waiting)[0]
    Service.objects.filter(name="s").update(pid=None)
    assert _give(waiting)[0]


def test_a_model_that_its_entry_splits_gets_as_many_gpus(settings: Settings) -> None:
    settings.VBATCH_ENGINE = "sim"
    recipe = recipes.find("vllm")
    assert recipe is not None

    def gpus(**config: Any) -> int:
        wanted = recipe.resolve(config)
        return orders.plan(recipe, wanted, Launcher.LOCAL, catalogue.tensor_parallel("qwen3"))[0].gpu

    entry = ServedModel(name="qwen3", source="/models/qwen3", endpoints=CHAT_ENDPOINTS)
    for arguments in ("--tensor-parallel-size 2", "--tensor_parallel_size=2", "-tp 2"):
        entry.engine_args = arguments
        entry.save()
        assert gpus() == 2
    assert gpus(resources={"gpu": 1}) == 1
    assert gpus(resources={"gpu": None}) == 0
    with pytest.raises(RecipeError, match="3 GPUs were asked for and this host has 2"):
        gpus(environment={"VLLM_TENSOR_PARALLEL_SIZE": 3})
    with pytest.raises(RecipeError, match="There is no GPU 7 on this host"):
        gpus(environment={"CUDA_VISIBLE_DEVICES": "7"})


def test_of_services_that_ended_a_week_ago_no_file_is_left(settings: Settings, tmp_path: Path) -> None:
    settings.VBATCH_HOME = tmp_path
    now = timezone.now()
    for name, days in (("old", 8), ("new", 6)):
        _service(name, state=ServiceState.COMPLETED, ended_at=now - timedelta(days=days))
    _service("running", state=ServiceState.RUNNING)
    for name in ("old", "new", "running", "nobodys"):
        (tmp_path / "services" / name).mkdir(parents=True)
        (tmp_path / "services" / name / "log").touch()
    services.sweep(now)
    assert {folder.name for folder in (tmp_path / "services").iterdir()} == {"new", "running"}
