"""The console's pages of results and single lines: what they show, and to whom."""

import re
import time

import pytest
from django.core.files.storage import default_storage
from django.test import Client

from batches import line_index, sweep
from batches.console.results import PAGE_LINES
from batches.models import Result
from batches.tests.browsing import SECRET, answer, begun, client_as, ended, run
from files import storage
from files.models import File
from vbatch_site.tests.speed import slowness

pytestmark = pytest.mark.django_db


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


def test_results_of_a_line_are_found_by_number_and_not_by_place(operator: Client) -> None:
    batch = begun(9)
    # Only some lines are done, so a line's place in the list is not its number.
    run(batch, 4)
    lines = sorted(Result.objects.filter(batch=batch).values_list("line", flat=True))
    page = operator.get(f"/console/batches/{batch.pk}/results/{lines[-1]}").content.decode()
    assert f"answer {lines[-1]}" in page


def test_results_without_an_index_leave_a_page_that_says_so(operator: Client) -> None:
    batch = ended(3)
    storage.delete(line_index.name_for(batch.pk))
    page = operator.get(f"/console/batches/{batch.pk}/results")
    assert page.status_code == 200
    assert "are older than this page" in page.content.decode()


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


def test_a_page_of_fifty_thousand_results_opens_anywhere_in_a_moment(operator: Client) -> None:
    lines = 50_000
    batch = ended(2)
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
        # What this thread computes, and the best of several: what else the machine does is no fault of the page.
        for _ in range(5):
            began = time.thread_time()
            page = operator.get(f"{url}?{query}")
            took.append((time.thread_time() - began) / slowness())
        assert shown in page.content.decode()
        assert min(took) < 0.3, took
    assert "line-49999<" in operator.get(f"{url}?q=line-4999").content.decode()
