"""What README and the pages of the documentation say is so."""

import re
from pathlib import Path

import pytest
from django.core.management import get_commands
from drf_spectacular.generators import SchemaGenerator

from vbatch_site.tests import reference
from vbatch_site.tests.pages import ROOT, RUN, SHOWN, TRIED, anchors, blocks, links, name_of, pages

README = (ROOT / "README.md").read_text()
PAGES = pages()


def test_every_setting_is_in_the_readme_and_nothing_else_is() -> None:
    read = set(re.findall(r'"((?:VBATCH|DATABASE)_[A-Z_]+)"', (ROOT / "vbatch_site" / "settings.py").read_text()))
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert table == read


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_on_a_page_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    assert set(re.findall(r"(?:`|^)make ([a-z]+)", text, re.MULTILINE)) <= targets
    assert set(re.findall(r"\bmanage\.py ([a-z_]+)", text)) <= set(get_commands())
    programs = re.findall(r"(?:`|^| )((?:scripts|benchmarks|examples)/[a-z/._-]*[a-z])\b", text, re.MULTILINE)
    assert [program for program in programs if not (ROOT / program).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_on_a_page_leads_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_listed_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert [name_of(page) for page in index.parent.glob("*.md") if page not in {*listed, index}] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_of_code_is_run_or_says_why_not(page: Path) -> None:
    for block in blocks(page):
        where = f"{block.page}:{block.line}"
        assert block.language in RUN | SHOWN, f"{where}: what language is this?"
        assert not block.note or re.match(r"not-run: \w", block.note), f"{where}: {block.note}"
        assert not block.is_run or block.page in TRIED, f"{where}: add the page to TRIED, or say not-run and why"


def test_the_reference_is_what_the_openapi_document_says() -> None:
    document = SchemaGenerator().get_schema(request=None, public=True)
    assert reference.PAGE.read_text() == reference.page(document), "run `make reference`"
