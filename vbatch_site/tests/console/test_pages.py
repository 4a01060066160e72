"""Pages that every role may or may not open, and what a request without a session gets."""

import re

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.test import Client

from vbatch_site.console.roles import ROLES
from vbatch_site.models import ApiKey, Project

pytestmark = pytest.mark.django_db

PAGES = ["/console/", "/console/keys", "/console/system"]


def client_as(role: str) -> Client:
    """Return a browser that is signed in as a member of a role."""
    user = get_user_model().objects.create_user(f"a {role}", password="x", is_staff=True)
    if role != "nobody":
        user.groups.add(Group.objects.get(name=role))
    client = Client()
    client.force_login(user)
    return client


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("url", PAGES)
def test_every_role_opens_every_page(role: str, url: str) -> None:
    assert client_as(role).get(url).status_code == 200


@pytest.mark.parametrize("url", PAGES)
def test_a_stranger_is_sent_to_the_form_and_staff_without_a_role_is_refused(url: str) -> None:
    away = Client().get(url)
    assert away.status_code == 302
    assert away["Location"].startswith("/admin/login/?next=")
    part = Client().get(url, headers={"HX-Request": "true"})
    assert part["HX-Redirect"] == "/admin/login/"
    assert client_as("nobody").get(url).status_code == 403


def test_the_landing_page_needs_no_account_and_names_this_server() -> None:
    page = Client().get("/", headers={"host": "gpu.example:4080"})
    assert page.status_code == 200
    text = page.content.decode()
    assert text.count("http://gpu.example:4080/v1") >= 4
    assert "sk-vb-..." in text


def test_a_key_is_issued_once_rotated_and_revoked_by_administrators_only() -> None:
    form = {"name": "app", "project": Project.default().pk, "scopes": ["batches"]}
    assert client_as("operator").post("/console/keys/issue", form).status_code == 403
    boss = client_as("administrator")
    page = boss.post("/console/keys/issue", form)
    text = re.search(r"sk-vb-[\w-]{43}", page.content.decode())
    assert text is not None
    key = ApiKey.objects.get(name="app")
    assert key.scopes == ["batches"]
    assert text[0] not in boss.get("/console/keys").content.decode()
    bearer = {"Authorization": f"Bearer {text[0]}"}
    assert Client().get("/v1/models", headers=bearer).status_code == 200
    second = re.search(r"sk-vb-[\w-]{43}", boss.post(f"/console/keys/{key.pk}/rotate").content.decode())
    assert second is not None
    assert Client().get("/v1/models", headers=bearer).status_code == 200
    assert boss.post(f"/console/keys/{key.pk}/revoke").status_code == 303
    assert Client().get("/v1/models", headers=bearer).status_code == 401
    assert Client().get("/v1/models", headers={"Authorization": f"Bearer {second[0]}"}).status_code == 200


def test_a_key_form_with_a_mistake_keeps_what_was_typed() -> None:
    page = client_as("administrator").post("/console/keys/issue", {"name": "kept name", "project": "999"})
    assert page.status_code == 422
    assert "kept name" in page.content.decode()


def test_a_page_carries_no_inline_script_and_names_no_other_host() -> None:
    client = client_as("administrator")
    for url in [*PAGES, "/"]:
        text = client.get(url).content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)", text), url
        assert not re.search(r"\son[a-z]+\s*=\s*[\"']", text), url
        assert not re.search(r"(?:src|href)=[\"'](?:https?:)?//", text), url


def test_a_form_from_elsewhere_is_refused() -> None:
    user = get_user_model().objects.create_superuser("op", password="x")
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    assert client.post("/console/keys/issue", {"name": "x"}).status_code == 403
