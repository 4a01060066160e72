"""The audit: who did what to which object, by whatever road, and nobody can change it."""

import json
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.utils import timezone

from batches.models import Batch
from files.models import File
from vbatch_site import audit
from vbatch_site.models import ApiKey, AuditEntry, Project
from vbatch_site.tests.test_tenancy import API_ROUTES, _batch, _file
from workers.models import ServedModel

pytestmark = pytest.mark.django_db


@pytest.fixture
def operator(client: Client) -> Client:
    client.force_login(get_user_model().objects.create_superuser("op", password="x"))
    AuditEntry.objects.none()
    return client


def _last() -> dict[str, Any]:
    entry = AuditEntry.objects.first()
    assert entry is not None
    return {name: getattr(entry, name) for name in ("via", "actor", "action", "object_id", "project")}


def test_what_a_key_does_is_noted_under_its_prefix_and_the_operations_name() -> None:
    project = Project.objects.create(name="tenant")
    key, text = ApiKey.issue(project, "app")
    api = Client(headers={"Authorization": f"Bearer {text}"})
    who = {"via": "api", "actor": f"key {key.prefix}", "project": "tenant"}

    file_id, batch_id = _file(project), _batch(project)
    answer = api.delete(f"/v1/files/{file_id}")
    assert _last() == {**who, "action": "deleteFile", "object_id": file_id}
    entry = AuditEntry.objects.first()
    assert entry is not None
    assert (entry.address, entry.request_id) == ("127.0.0.1", answer.headers["x-request-id"])
    api.post(f"/v1/batches/{batch_id}/cancel")
    assert _last() == {**who, "action": "cancelBatch", "object_id": batch_id}
    wanted = {"bytes": 0, "filename": "f", "mime_type": "text/plain", "purpose": "vision"}
    upload = api.post("/v1/uploads", wanted, content_type="application/json").json()
    assert _last() == {**who, "action": "createUpload", "object_id": upload["id"]}


def test_a_change_and_its_note_stand_or_fall_together() -> None:
    project = Project.objects.create(name="tenant")
    key, text = ApiKey.issue(project, "app")
    api = Client(headers={"Authorization": f"Bearer {text}"})
    file_id, batch_id = _file(project), _batch(project)
    File.objects.update(purpose="batch")
    wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    with connection.cursor() as cursor:
        cursor.execute(
            "ALTER TABLE vbatch_site_auditentry ADD CONSTRAINT none CHECK (actor NOT LIKE 'key %%') NOT VALID"
        )
    for method, path, body in (
        ("DELETE", f"/v1/files/{file_id}", {}),
        ("POST", f"/v1/batches/{batch_id}/cancel", {}),
        ("POST", f"/v1/batches/{batch_id}/pause", {}),
        ("POST", "/v1/batches", wanted),
    ):
        with transaction.atomic():
            refused = api.generic(method, path, json.dumps(body), content_type="application/json")
        assert refused.status_code == 503, path
    batch = Batch.objects.get()
    assert (batch.pk, batch.status, batch.paused_at, batch.events.count()) == (batch_id, "validating", None, 1)
    assert File.objects.get(pk=file_id).deleted_at is None
    assert key.is_live(timezone.now())


def test_what_changes_nothing_is_not_noted() -> None:
    api = Client(headers={"Authorization": f"Bearer {ApiKey.issue(Project.default(), 'app')[1]}"})
    before = AuditEntry.objects.count()
    api.get("/v1/files")
    api.delete("/v1/files/file-x")
    api.post("/v1/batches", {}, content_type="application/json")
    Client().post("/v1/batches", {}, content_type="application/json")
    Client().post("/console/keys/issue", {"name": "x"})
    assert AuditEntry.objects.count() == before


@pytest.mark.parametrize("route", [r for r in API_ROUTES if set(r.methods) - {"get"}], ids=lambda route: route.path)
def test_every_route_that_changes_something_has_a_name_in_the_audit(route: Any) -> None:
    for method in set(route.methods) - {"get"}:
        assert getattr(route.callback.cls, method).operation


def test_keys_are_noted_when_they_are_issued_and_revoked_however_that_is_done(operator: Client) -> None:
    form = {"project": Project.default().pk, "name": "app", "scopes": ["batches"]}
    operator.post("/admin/vbatch_site/apikey/add/", form)
    key = ApiKey.objects.get(name="app")
    made = {"action": "issueKey", "object_id": key.prefix, "project": "default", "actor": "op"}
    assert AuditEntry.objects.filter(**made, via="admin").count() == 1
    operator.post("/admin/vbatch_site/apikey/", {"action": "revoke", "_selected_action": [key.pk]})
    assert AuditEntry.objects.filter(**made | {"action": "revokeKey"}, via="admin").count() == 1
    issued = {"project": Project.default().pk, "name": "console", "scopes": ["batches"]}
    operator.post("/console/keys/issue", issued)
    key = ApiKey.objects.get(name="console")
    operator.post(f"/console/keys/{key.pk}/revoke")
    for action in ("issueKey", "revokeKey"):
        assert AuditEntry.objects.filter(action=action, object_id=key.prefix, actor="op", via="console").count() == 1
    call_command("create_api_key", "ci")
    key = ApiKey.objects.get(name="ci")
    assert AuditEntry.objects.filter(action="issueKey", object_id=key.prefix, via="command").count() == 1


def test_changes_in_the_admin_are_noted_with_the_fields_names_only(operator: Client) -> None:
    project = Project.objects.create(name="tenant")
    operator.post(f"/admin/vbatch_site/project/{project.pk}/change/", {"weight": 7})
    entry = AuditEntry.objects.get(action="change project")
    assert (entry.actor, entry.via, entry.object_id) == ("op", "admin", str(project.pk))
    assert entry.detail == {"changed": "Changed Weight."}
    model = ServedModel.objects.create(name="m", source="m", endpoints=["/v1/completions"])
    action = {"action": "delete_selected", "_selected_action": [model.pk], "post": "yes"}
    operator.post("/admin/workers/servedmodel/", action)
    assert AuditEntry.objects.get(action__startswith="delete_selected").detail == {"ids": [str(model.pk)]}


def test_logins_are_noted_and_the_names_of_failed_ones_are_not() -> None:
    get_user_model().objects.create_superuser("op", password="right")
    page = Client()
    page.post("/admin/login/", {"username": "secret-typed-here", "password": "wrong"})
    assert _last() == {
        "via": "admin", "actor": "anonymous", "action": "logInFailed", "object_id": "", "project": ""
    }  # fmt: skip
    page.post("/admin/login/", {"username": "op", "password": "right"})
    assert (_last()["actor"], _last()["action"]) == ("op", "logIn")
    page.post("/admin/logout/")
    assert (_last()["actor"], _last()["action"]) == ("op", "logOut")


def test_entries_can_be_neither_changed_nor_deleted() -> None:
    audit.note("test", "x")
    for change in (
        lambda: AuditEntry.objects.update(actor="somebody else"),
        lambda: AuditEntry.objects.all().delete(),
    ):
        with pytest.raises(DatabaseError, match="append-only"), transaction.atomic():
            change()
    assert _last()["object_id"] == "x"


def test_the_sweep_deletes_what_is_older_than_it_is_kept_and_nothing_else(settings: Any) -> None:
    settings.VBATCH_AUDIT_DAYS = 30
    now = timezone.now()
    for days in (29, 31):
        AuditEntry.objects.create(at=now - timedelta(days=days), via="api", actor="x", action=str(days))
    audit.sweep(now)
    assert [entry.action for entry in AuditEntry.objects.all()] == ["29"]
    with pytest.raises(DatabaseError, match="append-only"), transaction.atomic(savepoint=True):
        # The permission to delete ends with the sweep's own transaction, which here is the whole test's.
        AuditEntry.objects.update(actor="x")
    settings.VBATCH_AUDIT_DAYS = 0
    AuditEntry.objects.create(at=now - timedelta(days=9000), via="api", actor="x", action="old")
    audit.sweep(now)
    assert AuditEntry.objects.filter(action="old").exists()


def test_the_admin_shows_entries_and_edits_none(operator: Client) -> None:
    audit.note("test", "some-object")
    entry = AuditEntry.objects.get(action="test")
    assert "some-object" in operator.get("/admin/vbatch_site/auditentry/").content.decode()
    assert operator.post(f"/admin/vbatch_site/auditentry/{entry.pk}/change/", {"actor": "x"}).status_code == 403
    assert operator.post(f"/admin/vbatch_site/auditentry/{entry.pk}/delete/", {"post": "yes"}).status_code == 403
