"""The console's lists and pages of batches: what they show, and to whom."""

import re
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from batches.finalize import finalize
from batches.leases import abort_model, claim
from batches.models import Batch
from batches.tests.browsing import asked, begun, ended, keyed, run, sent, stored
from batches.validate import validate
from vbatch_site.tests.servers import MODEL, chat_line

pytestmark = pytest.mark.django_db


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


def test_a_batch_says_why_its_lines_did_not_run_before_and_after_its_end(operator: Client) -> None:
    batch = begun(1)
    abort_model(batch.pk, MODEL, "model_load_failed", "No memory.")
    for ending in (False, True):
        assert not ending or finalize(batch.pk)
        assert "model_load_failed: No memory." in operator.get(f"/console/batches/{batch.pk}").content.decode()


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


def test_the_export_has_the_rows_of_the_list(operator: Client) -> None:
    batch = begun()
    sent = operator.get("/console/batches/export.csv?status=in_progress")
    text = sent.getvalue().decode()
    assert text.splitlines()[1].startswith(f"{batch.pk},in_progress,{MODEL}")


def test_a_batch_and_a_file_show_the_key_or_the_person_that_made_them_and_the_worker_that_has_it(
    operator: Client,
) -> None:
    key, api = keyed()
    batch = Batch.objects.get(pk=sent(api).json()["id"])
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


def test_a_batch_that_did_not_validate_shows_each_fault_with_its_line(operator: Client) -> None:
    batch = asked(chat_line("a") + "not json\n" + chat_line("a"))
    validate(batch.pk)
    page = operator.get(f"/console/batches/{batch.pk}").content.decode()
    assert "The input is not valid" in page
    assert "invalid_json_line" in page
    check = operator.get(f"/console/batches/new/{batch.input_file_id}/check").content.decode()
    assert "The batch would fail" in check
    assert "invalid_json_line" in check
