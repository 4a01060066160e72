"""A list is read to its end page by page, whatever was asked for."""

import re
from html import unescape

import pytest
from django.test import Client

from batches.tests.browsing import begun, stored
from files.console import pages
from vbatch_site.console import tables
from vbatch_site.tests.servers import chat_line

pytestmark = pytest.mark.django_db


def _walked(browser: Client, url: str, row: str) -> list[str]:
    """Return what the rows of all pages are about, in their order."""
    found: list[str] = []
    for _ in range(50):
        text = browser.get(url).content.decode()
        found += re.findall(row, text)
        older = re.search(r'href="([^"]+)">Older<', text)
        if older is None:
            return found
        url = unescape(older[1])
    raise AssertionError("the list has no end")


@pytest.mark.parametrize("near", [5, 28])
def test_a_list_is_paged_to_its_end_for_frequent_words_and_for_rare_ones(
    operator: Client, monkeypatch: pytest.MonkeyPatch, near: int
) -> None:
    monkeypatch.setattr(tables, "_NEAR", near)
    made = [begun(1, metadata={"description": "weekly" if i else "yearly"}).pk for i in range(30)]
    row = r'id="row-(batch_\w+)"'
    assert _walked(operator, "/console/batches?q=yearly&status=in_progress", row) == made[:1]
    assert _walked(operator, "/console/batches?q=weekly&status=in_progress", row) == made[:0:-1]


def test_files_that_nobody_reads_are_looked_for_a_few_at_a_time(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_REACH", 3)
    old = stored(chat_line("a"), "old.jsonl").pk
    read = [begun(1).input_file_id for _ in range(9)]
    new = stored(chat_line("a"), "new.jsonl").pk
    row = r'<tr><th[^>]*><a href="/console/files/(file-[\w-]+)"'
    assert _walked(operator, "/console/files?used=no", row) == [new, old]
    assert _walked(operator, "/console/files?used=yes", row) == read[::-1]
