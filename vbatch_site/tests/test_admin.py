"""The admin: keys are issued there once, and rows that the machine writes can't be edited."""

import re
from datetime import timedelta

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.test import Client

from batches.models import Batch
from batches.states import BatchStatus
from vbatch_site.models import ApiKey, Project

pytestmark = pytest.mark.django_db

OURS = [m for m in apps.get_models() if m._meta.app_label in ("vbatch_site", "files", "batches", "workers")]


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(get_user_model().objects.create_superuser("op", password="x"))
    return client


@pytest.mark.parametrize("model", OURS, ids=lambda model: model._meta.label)
def test_every_list_opens_and_searches(operator: Client, model: type) -> None:
    url = f"/admin/{model._meta.app_label}/{model._meta.model_name}/"  # type: ignore[attr-defined]
    assert operator.get(url).status_code == 200
    assert operator.get(url, {"q": "x"}).status_code == 200


def test_a_key_is_shown_once_stored_hashed_and_opens_the_api(operator: Client) -> None:
    project = Project.default()
    form = {"project": project.pk, "name": "app", "scopes": ["batches", "live"]}
    page = operator.post("/admin/vbatch_site/apikey/add/", form, follow=True)
    found = re.search(r"sk-vb-[\w-]{20,}", page.content.decode())
    assert found is not None
    text = found[0]
    key = ApiKey.objects.get(name="app")
    assert text not in (key.key_hash, key.prefix)
    assert text not in operator.get(f"/admin/vbatch_site/apikey/{key.pk}/change/").content.decode()
    bearer = {"Authorization": f"Bearer {text}"}
    assert Client().get("/v1/models", headers=bearer).status_code == 200
    operator.post("/admin/vbatch_site/apikey/", {"action": "revoke", "_selected_action": [key.pk]})
    assert Client().get("/v1/models", headers=bearer).status_code == 401


def test_a_key_is_rotated_once_and_its_successor_shown_once(operator: Client) -> None:
    key, old = ApiKey.issue(Project.default(), "app")
    asked = {"action": "rotate", "_selected_action": [key.pk]}
    page = operator.post("/admin/vbatch_site/apikey/", asked, follow=True).content.decode()
    found = re.search(r"sk-vb-[\w-]{20,}", page)
    assert found is not None
    for text in (old, found[0]):
        assert Client().get("/v1/models", headers={"Authorization": f"Bearer {text}"}).status_code == 200
    assert found[0] not in operator.post("/admin/vbatch_site/apikey/", asked, follow=True).content.decode()
    assert ApiKey.objects.count() == 2


def test_a_batch_can_be_cancelled_but_not_edited(operator: Client) -> None:
    batch = Batch.begin(
        window=timedelta(hours=24),
        project=Project.default(),
        endpoint="/v1/chat/completions",
        input_file_id="file-x",
        completion_window="24h",
    )
    page = operator.post(f"/admin/batches/batch/{batch.pk}/change/", {"status": "completed"})
    assert page.status_code == 403
    operator.post("/admin/batches/batch/", {"action": "cancel", "_selected_action": [batch.pk]})
    batch.refresh_from_db()
    assert batch.status == BatchStatus.CANCELLING
