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
    read = set(re.findall(r'"((?:VBATCH|DATABASE)_[A-Z0-9_]+)"', (ROOT / "vbatch_site" / "settings.py").read_text()))
    table = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", README, re.MULTILINE))
    assert table == read


_READ = re.compile(r'env_(\w+)\(\s*"([A-Z_0-9]+)"(?:, "?(?:default=)?([^",)]*))?')
# What the table says where the code says nothing.
_UNSAID = {"str": "empty", "bool": "off", "object": "{}"}
# The default depends on the machine, or is no single value.
_IN_WORDS = {"VBATCH_GPU_WORKERS", "VBATCH_PROJECT_LIMITS"}


def test_the_defaults_in_the_readme_are_those_of_the_code() -> None:
    table = dict(re.findall(r"^\| `([A-Z_0-9]+)` \| `?([^|`]*?)`? \|", README, re.MULTILINE))
    read = _READ.findall((ROOT / "vbatch_site" / "settings.py").read_text())
    assert len(read) > 30
    for kind, name, default in read:
        wanted = {"": _UNSAID.get(kind), "True": "on"}.get(default, default)
        assert name in _IN_WORDS or table[name].split(",")[0] == wanted, name


def test_a_figure_of_a_benchmark_stands_in_the_benchmarks_table() -> None:
    table = ROOT / "benchmarks" / "README.md"
    measured = set(re.findall(r"\d(?:[\d.,]*\d)?", table.read_text()))
    said = {
        (name_of(page), figure)
        for page in PAGES
        for text in re.findall(r"\[([^\]]*)\]\((?:\.\./)?benchmarks/README\.md\)", page.read_text())
        for figure in re.findall(r"\d(?:[\d.,]*\d)?", text)
    }
    assert len(said) > 20
    assert [each for each in sorted(said) if each[1] not in measured] == []


def test_every_benchmark_is_in_the_table() -> None:
    table = (ROOT / "benchmarks" / "README.md").read_text()
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"workloads.py"}
    assert {name for name in scripts if f"| `{name}` |" not in table} == set()


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
