"""API keys: what each may do, until when, and from where it was used."""

from datetime import timedelta

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from vbatch_site.models import ApiKey, Project, Scope

pytestmark = pytest.mark.django_db


def _get(text: str, path: str = "/v1/files") -> int:
    return Client().get(path, headers={"Authorization": f"Bearer {text}"}).status_code


def _issue(*scopes: str) -> str:
    return ApiKey.issue(Project.default(), "test", scopes=list(scopes))[1]


def _begin_upload(text: str) -> tuple[int, str | None]:
    body = {"bytes": 1, "filename": "f", "mime_type": "text/plain", "purpose": "vision"}
    answer = Client().post(
        "/v1/uploads", body, content_type="application/json", headers={"Authorization": f"Bearer {text}"}
    )
    return answer.status_code, answer.json().get("error", {}).get("code")


def test_a_key_without_further_words_may_do_everything() -> None:
    key, text = ApiKey.issue(Project.default(), "test")
    assert all(key.allows(area, reading=False) for area in Scope.values[:3])
    assert _get(text) == 200
    assert _begin_upload(text) == (200, None)


def test_a_key_for_something_else_is_refused_and_told_what_it_lacks() -> None:
    bearer = {"Authorization": f"Bearer {_issue('live')}"}
    for path in ("/v1/files", "/v1/files/file-x", "/v1/batches", "/v1/batches/batch_x"):
        answer = Client().get(path, headers=bearer)
        assert answer.status_code == 403
        assert answer.json()["error"] == {
            "message": "You have insufficient permissions for this operation. Missing scopes: batches.",
            "type": "invalid_request_error",
            "param": None,
            "code": "missing_scope",
        }
    assert Client().get("/v1/models", headers=bearer).status_code == 200


def test_a_read_only_key_reads_and_changes_nothing() -> None:
    for text in (_issue("read-only"), _issue("batches", "read-only")):
        assert _get(text) == 200
        assert _begin_upload(text) == (403, "missing_scope")
    assert _get(_issue("live", "read-only")) == 403


def test_a_key_ends_when_it_expires() -> None:
    _, text = ApiKey.issue(Project.default(), "test", expires_at=timezone.now() + timedelta(hours=1))
    assert _get(text) == 200
    ApiKey.objects.update(expires_at=timezone.now())
    assert _get(text) == 401


def test_after_a_rotation_both_keys_work_until_the_overlap_is_over() -> None:
    key, old = ApiKey.issue(Project.default(), "test", scopes=["batches"])
    now = timezone.now()
    successor, new = key.rotate(now, timedelta(hours=1))
    assert (_get(old), _get(new)) == (200, 200)
    key.refresh_from_db()
    assert key.expires_at == now + timedelta(hours=1)
    assert (successor.scopes, successor.expires_at, key.successor_id) == (["batches"], None, successor.pk)
    key.expires_at = now
    key.save()
    assert (_get(old), _get(new)) == (401, 200)


def test_a_rotation_neither_lengthens_the_old_keys_life_nor_shortens_the_new_ones() -> None:
    now = timezone.now()
    key, _ = ApiKey.issue(Project.default(), "test", expires_at=now + timedelta(minutes=5))
    life = now + timedelta(minutes=5) - key.created_at
    successor, _ = key.rotate(now, timedelta(hours=1))
    assert key.expires_at == now + timedelta(minutes=5)
    assert successor.expires_at == now + life


def test_the_last_use_is_noted_with_its_address() -> None:
    key, text = ApiKey.issue(Project.default(), "test")
    _get(text)
    key.refresh_from_db()
    assert key.last_used_at is not None
    assert key.last_used_from == "127.0.0.1"


def test_a_key_that_only_begins_like_a_real_one_is_refused() -> None:
    _, text = ApiKey.issue(Project.default(), "test")
    assert _get(text[:-1]) == _get(text + "x") == _get(text[:12]) == _get(text[:12] + "x" * 37) == 401


def test_the_command_issues_scopes_and_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    call_command("create_api_key", "ci", "--scopes", "batches,read-only", "--expires", "90d")
    text = capsys.readouterr().out.strip()
    key = ApiKey.objects.get(name="ci")
    assert key.scopes == ["batches", "read-only"]
    assert key.expires_at is not None
    assert timedelta(days=89) < key.expires_at - timezone.now() <= timedelta(days=90)
    assert _get(text) == 200


@pytest.mark.parametrize("wrong", [["--scopes", "everything"], ["--expires", "soon"], ["--expires", "0d"]])
def test_the_command_refuses_what_it_does_not_know(wrong: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("create_api_key", "ci", *wrong)
    assert not ApiKey.objects.exists()
