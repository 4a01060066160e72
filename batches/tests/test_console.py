"""The console's pages about batches and files: what they show, to whom, and at what price."""

import asyncio
import json
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from batches import line_index, sweep
from batches.console.results import PAGE_LINES
from batches.finalize import finalize
from batches.leases import claim, commit
from batches.models import Batch, BatchEvent, Result
from batches.outcome import Outcome
from batches.states import BatchStatus
from batches.validate import validate
from batches.webhooks import endpoints
from batches.webhooks.models import WebhookDelivery
from files import uploads
from files.models import File
from vbatch_site.models import ApiKey, AuditEntry, Project
from vbatch_site.tests.servers import MODEL, chat_line

pytestmark = pytest.mark.django_db

SECRET = "the secret prompt"


def client_as(role: str) -> Client:
    """Return a browser that is signed in as a member of a role."""
    user, _ = get_user_model().objects.get_or_create(username=f"a {role}", is_staff=True)
    user.groups.add(Group.objects.get(name=role))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def operator() -> Client:
    return client_as("operator")


def stored(text: str, name: str = "input.jsonl") -> File:
    """Return an uploaded batch file."""
    upload = SimpleUploadedFile(name, text.encode())
    return uploads.create_file(Project.default(), upload, "batch", None)


def begun(lines: int = 5, **fields: Any) -> Batch:
    """Return a batch that was validated, of as many good lines."""
    file = stored("".join(chat_line(f"line-{i}", f"{SECRET} {i}") for i in range(1, lines + 1)))
    batch = Batch.begin(
        window=timedelta(hours=24),
        project=Project.default(),
        endpoint="/v1/chat/completions",
        input_file_id=file.pk,
        completion_window="24h",
        **fields,
    )
    validate(batch.pk)
    batch.refresh_from_db()
    assert batch.status == BatchStatus.IN_PROGRESS, batch.errors
    return batch


def answer(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}).encode()


def outcomes(batch: Batch, numbers: Iterator[int] | range, failing: int = 0) -> list[Outcome]:
    found = []
    for number in numbers:
        fields: dict[str, Any] = {"status_code": 200, "body": answer(f"answer {number}"), "milliseconds": 7}
        if failing and number % failing == 0:
            fields = {"error_code": "engine_crashed", "error_message": "It died."}
        found.append(Outcome(batch.pk, number, f"line-{number}", **fields, input_tokens=3, output_tokens=2))
    return found


def run(batch: Batch, lines: int, failing: int = 0) -> None:
    """Commit the results of the first lines."""
    done = 0
    while done < lines and (lease := claim(batch.pk, MODEL, "worker-1")):
        numbers = sorted(line.number for line in lease.lines)[: lines - done]
        commit([(lease, outcome) for outcome in outcomes(batch, iter(numbers), failing)])
        done += len(numbers)
    batch.refresh_from_db()


def ended(lines: int = 5, failing: int = 0) -> Batch:
    """Return a batch whose files are written."""
    batch = begun(lines)
    run(batch, lines, failing)
    assert finalize(batch.pk)
    batch.refresh_from_db()
    assert batch.status == BatchStatus.COMPLETED
    return batch


def test_a_running_batch_is_polled_and_an_ended_one_is_not(operator: Client) -> None:
    running, done = begun(), ended()
    for url in ("/console/batches", "/console/", f"/console/batches/{running.pk}"):
        assert "hx-trigger" in operator.get(url).content.decode(), url
    assert "data-live" not in operator.get(f"/console/batches/{done.pk}").content.decode()
    assert "data-live" not in operator.get("/console/batches?status=completed").content.decode()


def test_a_poll_gets_the_part_and_not_the_page(operator: Client) -> None:
    batch = begun()
    for url in ("/console/batches", "/console/", f"/console/batches/{batch.pk}"):
        part = operator.get(url, headers={"HX-Request": "true"}).content.decode()
        assert "<html" not in part
        assert part.strip() in operator.get(url).content.decode() or 'id="' in part


def test_the_list_filters_by_what_the_url_says(operator: Client) -> None:
    first, second = begun(metadata={"description": "nightly run"}), ended(7, failing=7)
    shown = {
        "status=in_progress": [first],
        "status=completed": [second],
        "q=nightly": [first],
        "q=description%3Dnightly run": [first],
        f"q={second.pk[:30]}": [second],
        f"q={second.input_file_id}": [second],
        "failures=1": [second],
        f"model={MODEL}": [first, second],
        "project=nobody": [],
        "endpoint=/v1/embeddings": [],
        "from=2999-01-01": [],
    }
    for query, expected in shown.items():
        text = operator.get(f"/console/batches?{query}").content.decode()
        assert [b for b in (first, second) if f"row-{b.pk}" in text] == expected, query
    empty = operator.get("/console/batches?q=batch_nothing").content.decode()
    assert "Nothing matches these filters" in empty


def test_an_empty_list_says_what_to_do_next(operator: Client) -> None:
    assert "No batches yet" in operator.get("/console/batches").content.decode()
    assert "No files yet" in operator.get("/console/files").content.decode()


@pytest.mark.parametrize("finished", [False, True], ids=["running", "ended"])
def test_results_are_the_same_while_the_batch_runs_and_after(operator: Client, finished: bool) -> None:
    lines = 120
    batch = ended(lines, failing=10) if finished else begun(lines)
    if not finished:
        run(batch, lines - 1, failing=10)
    url = f"/console/batches/{batch.pk}/results"
    first, last = operator.get(url).content.decode(), operator.get(f"{url}?page=3").content.decode()
    assert "line-1<" in first
    assert f"line-{PAGE_LINES}<" in first
    assert f"line-{PAGE_LINES * 2 + 1}<" in last
    assert "answer 1<" in first
    failed = operator.get(f"{url}?status=failed").content.decode()
    assert failed.count("engine_crashed") >= 11
    assert "It died." in failed
    assert "line-11<" not in failed
    coded = operator.get(f"{url}?status=failed&code=engine_crashed").content.decode()
    assert "line-10<" in coded
    assert "Nothing matches" in operator.get(f"{url}?code=other").content.decode()
    named = operator.get(f"{url}?q=line-7").content.decode()
    assert "line-77<" in named
    assert "line-17<" not in named


@pytest.mark.parametrize("finished", [False, True], ids=["running", "ended"])
def test_a_line_shows_its_request_beside_its_answer(operator: Client, finished: bool) -> None:
    batch = ended(30, failing=10) if finished else begun(30)
    if not finished:
        run(batch, 29, failing=10)
    page = operator.get(f"/console/batches/{batch.pk}/results/7").content.decode()
    assert f"{SECRET} 7" in page
    assert "answer 7" in page
    assert "It died." in operator.get(f"/console/batches/{batch.pk}/results/10").content.decode()
    assert operator.get(f"/console/batches/{batch.pk}/results/31").status_code == 404


def test_a_viewer_sees_no_prompt_and_no_answer_on_any_page() -> None:
    batch = ended(3)
    viewer = client_as("viewer")
    file = batch.input_file_id
    for url in (f"/console/batches/{batch.pk}", f"/console/batches/{batch.pk}/results", f"/console/files/{file}"):
        page = viewer.get(url)
        assert page.status_code == 200
        assert SECRET not in page.content.decode()
        assert "answer 1" not in page.content.decode()
    for url in (f"/console/batches/{batch.pk}/results/1", f"/console/files/{file}/download"):
        assert viewer.get(url).status_code == 403


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


def test_an_action_that_is_not_possible_says_why(operator: Client) -> None:
    page = operator.get(f"/console/batches/{ended(2).pk}").content.decode()
    assert 'aria-disabled="true" title="It is completed."' in page.replace("\n", " ")


def test_a_batch_that_did_not_validate_shows_each_fault_with_its_line(operator: Client) -> None:
    file = stored(chat_line("a") + "not json\n" + chat_line("a"))
    batch = Batch.begin(
        window=timedelta(hours=1),
        project=Project.default(),
        endpoint="/v1/chat/completions",
        input_file_id=file.pk,
        completion_window="24h",
    )
    validate(batch.pk)
    page = operator.get(f"/console/batches/{batch.pk}").content.decode()
    assert "The input is not valid" in page
    assert "invalid_json_line" in page
    check = operator.get(f"/console/batches/new/{file.pk}/check").content.decode()
    assert "The batch would fail" in check
    assert "invalid_json_line" in check


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


def test_a_mistake_in_the_wizard_keeps_what_was_typed(operator: Client) -> None:
    file = stored(chat_line("a"))
    form = {"endpoint": "/v1/chat/completions", "completion_window": "7h", "metadata": "kept=yes"}
    page = operator.post(f"/console/batches/new/{file.pk}/confirm", form)
    assert page.status_code == 422
    assert "kept=yes" in page.content.decode()
    assert "&#x27;7h&#x27;" in page.content.decode()


def test_a_file_comes_in_parts_and_goes_on_after_a_break(operator: Client) -> None:
    text = "".join(chat_line(f"line-{i}") for i in range(40)).encode()
    begin = {"project": Project.default().pk, "filename": "big.jsonl", "bytes": len(text)}
    upload = operator.post("/console/uploads", json.dumps(begin), content_type="application/json").json()
    url = f"/console/uploads/{upload['id']}"
    half = len(text) // 2
    binary = "application/octet-stream"
    one = operator.post(f"{url}/parts", text[:half], content_type=binary).json()["id"]
    assert operator.get(url).json() == {"state": "pending", "parts": [one], "part_bytes": upload["part_bytes"]}
    two = operator.post(f"{url}/parts", text[half:], content_type=binary).json()["id"]
    done = operator.post(f"{url}/complete", json.dumps({"part_ids": [one, two]}), content_type="application/json")
    file = File.objects.get(pk=done.json()["file"])
    assert (file.bytes, file.filename, file.purpose) == (len(text), "big.jsonl", "batch")
    assert done.json()["next"] == f"/console/batches/new/{file.pk}"
    late = operator.post(f"{url}/parts", b"x", content_type=binary)
    assert late.status_code == 400
    assert "takes no more parts" in late.json()["error"]["message"]


def test_an_upload_is_refused_in_the_words_of_the_api(operator: Client) -> None:
    begin = {"project": Project.default().pk, "filename": "x", "bytes": 201 << 20}
    refused = operator.post("/console/uploads", json.dumps(begin), content_type="application/json")
    assert refused.json()["error"]["message"] == "File is too large."
    assert client_as("viewer").post("/console/uploads", "{}", content_type="application/json").status_code == 403


def test_a_file_that_a_running_batch_reads_is_not_deleted(operator: Client) -> None:
    batch = begun()
    url = f"/console/files/{batch.input_file_id}"
    assert "1 running batches read it" in operator.get(url).content.decode()
    operator.post(f"{url}/delete")
    assert File.objects.get(pk=batch.input_file_id).deleted_at is None
    other = stored(chat_line("b"))
    operator.post(f"/console/files/{other.pk}/delete")
    assert operator.get(f"/console/files/{other.pk}").status_code == 404


async def _collected(sent: Any) -> bytes:
    return b"".join([block async for block in sent.streaming_content])


def test_a_download_is_what_was_stored(operator: Client) -> None:
    file = stored(chat_line("a"))
    sent = operator.get(f"/console/files/{file.pk}/download")
    assert asyncio.run(_collected(sent)).decode() == chat_line("a")


def test_the_export_has_the_rows_of_the_list(operator: Client) -> None:
    batch = begun()
    sent = operator.get("/console/batches/export.csv?status=in_progress")
    text = sent.getvalue().decode()
    assert text.splitlines()[1].startswith(f"{batch.pk},in_progress,{MODEL}")


def test_results_without_an_index_leave_a_page_that_says_so(operator: Client) -> None:
    batch = ended(3)
    from files import storage

    storage.delete(line_index.name_for(batch.pk))
    page = operator.get(f"/console/batches/{batch.pk}/results")
    assert page.status_code == 200
    assert "are older than this page" in page.content.decode()


# What a page may ask of the database: sign-in takes 4 (session, user, two for permissions).
BUDGETS = {
    "/console/": 24,
    "/console/batches": 17,
    "/console/batches/{batch}": 18,
    "/console/batches/{batch}/results": 11,
    "/console/batches/{batch}/results/1": 8,
    "/console/files": 10,
    "/console/files/{file}": 8,
    "/console/webhooks": 10,
    "/console/keys": 9,
}


@pytest.mark.parametrize("url", BUDGETS)
def test_a_page_takes_the_same_few_queries_for_1_row_as_for_30(operator: Client, url: str) -> None:
    batch = ended(3, failing=3)
    begun(1)
    path = url.format(batch=batch.pk, file=batch.input_file_id)
    operator.get(path)
    counts = []
    for more in (0, 30):
        for _ in range(more):
            begun(1)
        with CaptureQueriesContext(connection) as captured:
            assert operator.get(path).status_code == 200
        counts.append(len(captured))
    assert counts[0] == counts[1]
    assert max(counts) <= BUDGETS[url], [query["sql"][:200] for query in captured]


def test_a_page_of_fifty_thousand_results_opens_anywhere_in_a_moment(operator: Client) -> None:
    lines = 50_000
    batch = ended(2)
    from files import storage

    output = File.objects.get(pk=batch.output_file_id)
    entries, size = [], 0
    with storage.writing(output.path) as out:
        for number in range(1, lines + 1):
            text = b'{"custom_id":"line-%d","response":{"status_code":200,"body":%b},"error":null}\n' % (
                number,
                answer("x" * 300),
            )
            entries.append(line_index.Entry(number, 0, size, len(text), 0, 0, 200, custom_id=f"line-{number}"))
            out.write(text)
            size += len(text)
    with storage.writing(line_index.name_for(batch.pk)) as out:
        out.write(b"".join(map(line_index.pack, entries)))
    url = f"/console/batches/{batch.pk}/results"
    operator.get(url)
    for query, shown in (("page=1", "line-1<"), ("page=700", "line-35000<"), ("page=1000", "line-50000<")):
        took = []
        for _ in range(3):
            began = timezone.now()
            page = operator.get(f"{url}?{query}")
            took.append((timezone.now() - began).total_seconds())
        assert shown in page.content.decode()
        # The best of them: what else the machine does is no fault of the page.
        assert min(took) < 0.3, took
    assert "line-49999<" in operator.get(f"{url}?q=line-4999").content.decode()


def test_results_of_a_line_are_found_by_number_and_not_by_place(operator: Client) -> None:
    batch = begun(9)
    # Only some lines are done, so a line's place in the list is not its number.
    run(batch, 4)
    lines = sorted(Result.objects.filter(batch=batch).values_list("line", flat=True))
    page = operator.get(f"/console/batches/{batch.pk}/results/{lines[-1]}").content.decode()
    assert f"answer {lines[-1]}" in page


def test_retry_starts_a_batch_that_runs_only_what_failed(operator: Client) -> None:
    batch = ended(20, failing=10)
    made = operator.post(f"/console/batches/{batch.pk}/retry")
    again = Batch.objects.exclude(pk=batch.pk).get()
    assert made["Location"] == f"/console/batches/{again.pk}"
    validate(again.pk)
    again.refresh_from_db()
    assert (again.total, again.completed, again.status) == (20, 18, BatchStatus.IN_PROGRESS)


def test_a_file_opens_at_any_line(operator: Client) -> None:
    file = stored("".join(chat_line(f"line-{i}", f"text {i}") for i in range(1, 40)))
    assert "text 17" in operator.get(f"/console/files/{file.pk}?line=17").content.decode()
    assert "no such line" in operator.get(f"/console/files/{file.pk}?line=70").content.decode()


def _keyed(name: str = "nightly") -> tuple[ApiKey, Client]:
    key, text = ApiKey.issue(Project.default(), name)
    return key, Client(headers={"Authorization": f"Bearer {text}"})


def _sent(api: Client, **fields: Any) -> Any:
    wanted = {
        "input_file_id": stored(chat_line("a")).pk,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    return api.post("/v1/batches", {**wanted, **fields}, content_type="application/json")


def test_no_new_batch_is_taken_while_an_administrator_wants_none() -> None:
    boss, (_, api) = client_as("administrator"), _keyed()
    assert client_as("operator").post("/console/system/intake/pause").status_code == 403
    assert "act-pause-intake" not in client_as("operator").get("/console/system").content.decode()
    boss.post("/console/system/intake/pause")
    refused = _sent(api)
    assert (refused.status_code, refused["retry-after"]) == (503, "30")
    assert refused.json()["error"]["code"] == "intake_paused"
    assert not Batch.objects.exists()
    assert "New batches are not taken" in boss.get("/console/").content.decode()
    assert "by a administrator" in boss.get("/console/system").content.decode()
    boss.post("/console/system/intake/resume")
    assert _sent(api).status_code == 200
    noted = AuditEntry.objects.filter(actor="a administrator").order_by("id").values_list("action", flat=True)
    assert list(noted) == ["pause_intake", "resume_intake"]


def test_a_batch_and_a_file_show_the_key_or_the_person_that_made_them_and_the_worker_that_has_it(
    operator: Client,
) -> None:
    key, api = _keyed()
    batch = Batch.objects.get(pk=_sent(api).json()["id"])
    by_hand = stored(chat_line("a"))
    form = {"endpoint": "/v1/chat/completions", "completion_window": "24h", "create": "1"}
    operator.post(f"/console/batches/new/{by_hand.pk}/confirm", form)
    validate(batch.pk)
    assert claim(batch.pk, MODEL, "gpu-07-4711") is not None
    text = operator.get("/console/batches").content.decode()
    assert ">nightly</span>" in text
    assert ">a operator</span>" in text
    assert "/console/workers/gpu-07-4711" in text
    only = operator.get(f"/console/batches?key={key.pk}").content.decode()
    assert f"row-{batch.pk}" in only
    assert only.count('id="row-') == 1
    keys = operator.get("/console/keys").content.decode()
    assert re.search(rf'href="/console/batches\?key={key.pk}&amp;from=[\d-]+">1<', keys)
    assert f"key={key.pk}" in keys
    assert "nightly" in operator.get(f"/console/batches/{batch.pk}").content.decode()


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


def test_a_number_that_can_be_clicked_leads_to_the_rows_that_it_counts(operator: Client) -> None:
    first, second = begun(), begun(metadata={"description": "x"})
    run(second, 2)
    Batch.objects.filter(pk=first.pk).update(expires_at=timezone.now() + timedelta(minutes=5))
    ended(2, failing=2)
    for address in ("/console/", "/console/batches"):
        text = operator.get(address).content.decode()
        links = re.findall(r'href="(/console/batches(?:\?[^"]*)?)" id="(?:tile|choice)[^>]*>(.*?)</a>', text)
        assert len(links) >= 4
        for url, inside in links:
            number = int(re.findall(r"\d+", re.sub(r"<[^>]*>", " ", inside.replace("24 h", "").replace("1 h", "")))[0])
            rows = operator.get(url.replace("&amp;", "&")).content.decode().count('id="row-')
            assert rows == number, url
    # Counts of what other filters leave out would lead astray.
    assert "vb-count" not in operator.get("/console/batches?failures=1").content.decode()


def test_words_are_found_by_their_beginnings_and_pairs_whole(operator: Client) -> None:
    batch = begun(metadata={"team": "Sales/EMEA", "description": "weekly-report 2024 50% off"})
    for text, is_found in {
        "emea": True,
        "sal report": True,
        "2024": True,
        "50%": True,
        "ekly": False,
        "team=Sales/EMEA": True,
        "team=Sales": False,
        "'); --": False,
        "\\": False,
    }.items():
        page = operator.get("/console/batches", {"q": text}).content.decode()
        assert (f"row-{batch.pk}" in page) == is_found, text


def test_files_say_how_long_they_are_and_who_reads_them(operator: Client) -> None:
    batch = ended(7, failing=7)
    other = stored("".join(chat_line(f"l-{i}") for i in range(3)).rstrip("\n"), "quarterly_report.jsonl")
    lines = dict(File.objects.values_list("pk", "lines"))
    assert [lines[str(pk)] for pk in (batch.input_file_id, batch.output_file_id, batch.error_file_id)] == [7, 6, 1]
    assert lines[other.pk] is None
    assert "<dt>Lines</dt><dd>3</dd>" in operator.get(f"/console/files/{other.pk}").content.decode()
    for query, shown in {
        "used=yes": {batch.input_file_id},
        "used=no": {other.pk, batch.output_file_id, batch.error_file_id},
        "q=report": {other.pk},
        "q=uarter": set(),
        "purpose=batch": {other.pk, batch.input_file_id},
    }.items():
        text = operator.get(f"/console/files?{query}").content.decode()
        assert {pk for pk in lines if f"/console/files/{pk}" in text} == shown, query


@pytest.mark.parametrize(("lost", "left"), [("output", 1), ("error", 9)])
def test_what_is_left_of_the_results_is_shown_when_one_file_is_deleted(operator: Client, lost: str, left: int) -> None:
    batch = ended(10, failing=10)
    operator.post(f"/console/files/{getattr(batch, f'{lost}_file_id')}/delete")
    for _ in range(2):
        page = operator.get(f"/console/batches/{batch.pk}/results").content.decode()
        assert f"The {lost} file of this batch is deleted" in page
        assert re.search(rf"\b{left} lines?\b", page)
        assert ("It died." in page) == (lost == "output")
        assert operator.get(f"/console/batches/{batch.pk}/results/10").status_code == (200 if lost == "output" else 404)
        sweep.delete_unneeded_bytes()
    operator.post(f"/console/files/{batch.output_file_id}/delete")
    operator.post(f"/console/files/{batch.error_file_id}/delete")
    sweep.delete_unneeded_bytes()
    assert not default_storage.exists(line_index.name_for(batch.pk))
    assert "are deleted" in operator.get(f"/console/batches/{batch.pk}/results").content.decode()


def test_a_page_about_one_thing_takes_few_queries(operator: Client) -> None:
    batch = ended(2)
    endpoint, _ = endpoints.create(
        Project.default(), {"name": "e", "url": "https://example.com/x", "event_types": ["batch.completed"]}
    )
    delivery = WebhookDelivery.objects.create(
        id="whd_1",
        event_id="evt_1",
        endpoint=endpoint,
        project=Project.default(),
        event_type="batch.completed",
        payload=b"{}",
        batch_id=batch.pk,
        give_up_at=timezone.now(),
    )
    budgets = {
        "/console/batches/new": 10,
        f"/console/batches/new/{batch.input_file_id}": 8,
        "/console/system": 13,
        f"/console/webhooks/deliveries/{delivery.pk}": 7,
    }
    for url, most in budgets.items():
        operator.get(url)
        with CaptureQueriesContext(connection) as captured:
            assert operator.get(url).status_code == 200
        assert len(captured) <= most, (url, [query["sql"][:200] for query in captured])
