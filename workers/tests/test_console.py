"""The console's pages about models, workers, GPUs and services."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches.tests.browsing import client_as
from vbatch_site.models import AuditEntry
from workers import gpus, registry, steering
from workers.models import ServedModel, Service, Worker

pytestmark = pytest.mark.django_db

LISTING = """0, NVIDIA H200, 30123, 143771, 97, 61
1, NVIDIA H200, [N/A], 143771, [N/A], [Unknown Error]
garbage
"""


def worker(name: str, silent: float = 0) -> Worker:
    """Return a worker that was heard of so many seconds ago."""
    seen = timezone.now() - timedelta(seconds=silent)
    return Worker.objects.create(pk=name, host="gpu-07", pid=17, seen_at=seen, started_at=seen)


def test_what_nvidia_smi_does_not_know_stays_unknown() -> None:
    first, second = gpus.parse(LISTING)
    assert (first.memory_used, first.utilization, first.temperature) == (30123 << 20, 97, 61)
    assert (second.memory_used, second.utilization, second.temperature) == (None, None, None)
    assert second.memory_total == 143771 << 20


def test_a_worker_is_shown_as_what_it_does() -> None:
    worker("w-idle"), worker("w-silent", 60), worker("w-gone", 3600)
    loading = worker("w-loading")
    Service.objects.create(model=ServedModel.objects.earliest("pk"), worker=loading, state="starting")
    page = client_as("viewer").get("/console/workers").content.decode()
    for name, word in (("w-idle", "idle"), ("w-silent", "silent"), ("w-loading", "loading")):
        before = page.partition(f'title="{name}"')[0]
        assert f">{word}<" in before[-400:], name
    assert "w-gone" not in page


def test_nobody_alive_is_a_warning_on_the_dashboard() -> None:
    assert "No worker is alive" in client_as("viewer").get("/console/").content.decode()
    worker("w-1")
    assert "No worker is alive" not in client_as("viewer").get("/console/").content.decode()


def test_a_model_is_switched_by_administrators_only() -> None:
    model = ServedModel.objects.filter(enabled=True).first()
    assert model is not None
    url = f"/console/models/{model.pk}/switch"
    assert client_as("operator").post(url, {"enabled": "0"}).status_code == 403
    assert client_as("administrator").post(url, {"enabled": "0"}).status_code == 303
    model.refresh_from_db()
    assert not model.enabled


def test_a_recipes_form_has_its_parameters_and_keeps_what_was_typed() -> None:
    boss = client_as("administrator")
    page = boss.get("/console/services/start/inference/vllm").content.decode()
    assert 'name="VLLM_MODEL"' in page
    wrong = boss.post("/console/services/start/inference/vllm", {"cpu": "many", "memory": "8G", "project": "1"})
    assert wrong.status_code == 422
    assert 'value="many"' in wrong.content.decode()
    assert "config.resources.cpu" in wrong.content.decode()
    assert client_as("operator").get("/console/services/start/inference/vllm").status_code == 403


def test_a_workers_own_service_is_not_cancelled_here() -> None:
    service = Service.objects.create(model=ServedModel.objects.earliest("pk"), worker=worker("w-1"), state="running")
    boss = client_as("administrator")
    assert "Its worker starts and stops it." in boss.get(f"/console/services/{service.pk}").content.decode()
    assert boss.post(f"/console/services/{service.pk}/cancel").status_code == 404


@pytest.mark.parametrize("url", ["/console/workers", "/console/models", "/console/services", "/console/workers/w-1"])
def test_a_page_takes_the_same_few_queries_for_1_row_as_for_20(url: str) -> None:
    viewer = client_as("viewer")
    first = worker("w-1")
    Service.objects.create(model=ServedModel.objects.earliest("pk"), worker=first, state="running")
    viewer.get(url)
    counts = []
    for more in (0, 20):
        for i in range(more):
            other = worker(f"w-x{i}")
            Service.objects.create(model=ServedModel.objects.earliest("pk"), worker=other, state="failed")
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(url).status_code == 200
        counts.append(len(captured))
    assert counts[0] == counts[1] <= 13


def test_a_worker_is_told_by_administrators_only_and_in_its_row() -> None:
    worker("w-1")
    boss, page = client_as("administrator"), "/console/workers"
    assert client_as("operator").post(f"{page}/w-1/drain").status_code == 403
    assert "act-drain-w-1" not in client_as("operator").get(page).content.decode()
    for action, wanted, shown in (("drain", "drain", "drained"), ("stop", "stop", "off"), ("resume", "", "idle")):
        assert f'id="act-{action}-w-1"' in boss.get(page).content.decode() or action == "stop"
        assert boss.post(f"{page}/w-1/{action}").status_code == 303
        assert Worker.objects.get().wanted == wanted
        assert f">{shown}<" in boss.get(page).content.decode()
        entry = AuditEntry.objects.get(action="worker_action", object_id=f"w-1 {action}")
        assert (entry.actor, entry.via) == ("a administrator", "console")
    assert boss.post(f"{page}/w-1/other").status_code == 404
    worker("w-2", 60)
    assert 'aria-disabled="true" title="It is silent."' in boss.get(page).content.decode()
    Worker.objects.update(stopped_at=timezone.now())
    assert "has ended" in boss.post(f"{page}/w-1/drain", follow=True).content.decode()


def test_a_model_is_loaded_on_a_worker_and_unloaded_where_nothing_waits_for_it() -> None:
    model = ServedModel.objects.filter(enabled=True).earliest("pk")
    boss = client_as("administrator")
    url = f"/console/models/{model.pk}/load"
    assert "No worker is free to load it." in boss.get("/console/models").content.decode()
    slot = worker("w-1")
    assert "No worker is free to load it." not in boss.get("/console/models").content.decode()
    assert client_as("operator").post(url, {"worker": "w-1"}).status_code == 403
    boss.post(url, {"worker": "w-1"})
    slot.refresh_from_db()
    assert (slot.load, slot.wanted) == (model, "")
    assert steering.beat("w-1").model == model.name
    Service.objects.create(model=model, worker=slot, state="running")
    assert steering.beat("w-1") == steering.Orders()
    assert "/console/workers/w-1/unload" in boss.get("/console/models").content.decode()
    boss.post("/console/workers/w-1/unload")
    assert steering.beat("w-1").frees_gpu({})
    Service.objects.update(state="completed")
    assert steering.beat("w-1").takes_work
    ServedModel.objects.update(enabled=False)
    assert "It is disabled." in boss.post(url, {"worker": "w-1"}, follow=True).content.decode()


def test_a_model_that_a_drained_worker_has_is_loaded_elsewhere() -> None:
    slot = worker("w-1")
    model = ServedModel.objects.earliest("pk")
    Service.objects.create(model=model, worker=slot, state="running")
    assert registry.facts("w-2")[1] == {model.name: 1}
    steering.drain("w-1")
    assert registry.facts("w-2")[1] == {}
