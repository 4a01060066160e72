"""What people do to batches in the console: make them, steer them, run them again, each as far as the role goes."""

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.test import Client

from batches.models import Batch, BatchEvent
from batches.states import BatchStatus
from batches.tests.browsing import SECRET, begun, client_as, ended, keyed, sent, stored
from batches.validate import validate
from vbatch_site.models import AuditEntry
from vbatch_site.tests.servers import chat_line

pytestmark = pytest.mark.django_db


def test_the_wizard_creates_one_batch_however_often_it_is_clicked(operator: Client) -> None:
    file = stored(chat_line("a", "hello"))
    page = operator.get(f"/console/batches/new/{file.pk}").content.decode()
    assert "hello" in page
    form = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "metadata": "description=by hand\n"}
    confirm = operator.post(f"/console/batches/new/{file.pk}/confirm", form).content.decode()
    assert "client.batches.create(" in confirm
    assert "curl " in confirm
    assert not Batch.objects.exists()
    for _ in range(2):
        made = operator.post(f"/console/batches/new/{file.pk}/confirm", {**form, "create": "1", "once": "abc123"})
        assert made.status_code == 303
    batch = Batch.objects.get()
    assert batch.metadata == {"description": "by hand"}
    assert made["Location"] == f"/console/batches/{batch.pk}"


def test_the_wizard_shows_prompts_to_nobody_who_may_not_see_them_and_survives_any_line(operator: Client) -> None:
    file = stored(chat_line("a", SECRET) + "[" * 5000 + "\n")
    page = operator.get(f"/console/batches/new/{file.pk}")
    assert (page.status_code, SECRET in page.content.decode()) == (200, True)
    user = get_user_model().objects.create_user("hands without eyes", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_console", "operate"]))
    client = Client()
    client.force_login(user)
    page = client.get(f"/console/batches/new/{file.pk}")
    assert (page.status_code, SECRET in page.content.decode()) == (200, False)


def test_what_only_looks_like_a_number_is_none(operator: Client) -> None:
    batch = ended()
    for url in (
        "/console/batches?key=²",
        f"/console/batches/{batch.pk}/results?page=²&code=http_²",
        f"/console/files/{batch.input_file_id}?line=²",
    ):
        assert operator.get(url).status_code == 200, url
    form = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for priority in ("²", "--5", "-"):
        url = f"/console/batches/new/{batch.input_file_id}/confirm"
        assert operator.post(url, {**form, "priority": priority}).status_code == 422, priority


def test_a_mistake_in_the_wizard_keeps_what_was_typed(operator: Client) -> None:
    file = stored(chat_line("a"))
    form = {"endpoint": "/v1/chat/completions", "completion_window": "7h", "metadata": "kept=yes"}
    page = operator.post(f"/console/batches/new/{file.pk}/confirm", form)
    assert page.status_code == 422
    assert "kept=yes" in page.content.decode()
    assert "&#x27;7h&#x27;" in page.content.decode()


def test_pause_resume_priority_and_cancel_are_done_by_the_same_code_as_the_apis(operator: Client) -> None:
    batch = begun()
    url = f"/console/batches/{batch.pk}"
    assert operator.post(f"{url}/pause").status_code == 303
    page = operator.get(url).content.decode()
    assert "in progress, paused" in page
    assert "act-resume" in page
    operator.post(f"{url}/prioritize", {"priority": "40"})
    operator.post(f"{url}/prioritize", {"priority": "4000"})
    operator.post(f"{url}/resume")
    operator.post(f"{url}/cancel")
    batch.refresh_from_db()
    assert (batch.priority, batch.paused_at, batch.status) == (40, None, BatchStatus.CANCELLING)
    assert "asked for by a operator" in BatchEvent.objects.filter(batch=batch).last().reason  # type: ignore[union-attr]
    late = operator.post(f"{url}/cancel", follow=True).content.decode()
    assert "Too late: the batch is cancelling" in late


def test_a_viewer_steers_nothing_and_sees_no_button_for_it() -> None:
    batch = begun()
    viewer = client_as("viewer")
    page = viewer.get(f"/console/batches/{batch.pk}").content.decode()
    assert "act-cancel" not in page
    for action in ("cancel", "pause", "prioritize"):
        assert viewer.post(f"/console/batches/{batch.pk}/{action}").status_code == 403
    assert viewer.get("/console/batches/new").status_code == 403
    batch.refresh_from_db()
    assert batch.status == BatchStatus.IN_PROGRESS


def test_an_action_that_is_not_possible_says_why(operator: Client) -> None:
    page = operator.get(f"/console/batches/{ended(2).pk}").content.decode()
    assert 'aria-disabled="true" title="It is completed."' in page.replace("\n", " ")


def test_retry_starts_a_batch_that_runs_only_what_failed(operator: Client) -> None:
    batch = ended(20, failing=10)
    made = operator.post(f"/console/batches/{batch.pk}/retry")
    again = Batch.objects.exclude(pk=batch.pk).get()
    assert made["Location"] == f"/console/batches/{again.pk}"
    validate(again.pk)
    again.refresh_from_db()
    assert (again.total, again.completed, again.status) == (20, 18, BatchStatus.IN_PROGRESS)


def test_ticked_batches_are_cancelled_or_run_again_in_new_ones(operator: Client) -> None:
    running, done, good = begun(), ended(4, failing=2), ended(2)
    page = operator.get("/console/batches").content.decode()
    assert f'name="cancel" value="{running.pk}"' in page
    assert f'name="retry" value="{done.pk}"' in page
    assert f'value="{good.pk}"' not in page
    operator.post("/console/batches/cancel", {"cancel": [running.pk], "retry": [done.pk]})
    running.refresh_from_db()
    assert running.status == BatchStatus.CANCELLING
    told = operator.post("/console/batches/retry", {"retry": [done.pk, good.pk]}, follow=True).content.decode()
    assert "1 new batches run" in told
    assert "1 refused: There is nothing to retry" in told
    assert Batch.objects.get(continue_from=done.pk).created_by == "a operator"
    assert client_as("viewer").post("/console/batches/retry", {"retry": [done.pk]}).status_code == 403
    noted = AuditEntry.objects.filter(action__in=["cancel_batches", "retry_batches"]).values_list(
        "object_id", flat=True
    )
    assert set(noted) == {running.pk, Batch.objects.get(continue_from=done.pk).pk}


def test_no_new_batch_is_taken_while_an_administrator_wants_none() -> None:
    boss, (_, api) = client_as("administrator"), keyed()
    assert client_as("operator").post("/console/system/intake/pause").status_code == 403
    assert "act-pause-intake" not in client_as("operator").get("/console/system").content.decode()
    boss.post("/console/system/intake/pause")
    refused = sent(api)
    assert (refused.status_code, refused["retry-after"]) == (503, "30")
    assert refused.json()["error"]["code"] == "intake_paused"
    assert not Batch.objects.exists()
    assert "New batches are not taken" in boss.get("/console/").content.decode()
    assert "by a administrator" in boss.get("/console/system").content.decode()
    boss.post("/console/system/intake/resume")
    assert sent(api).status_code == 200
    noted = AuditEntry.objects.filter(actor="a administrator").order_by("id").values_list("action", flat=True)
    assert list(noted) == ["pause_intake", "resume_intake"]
