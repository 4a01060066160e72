"""docs/formats.md lists the error codes that the code has, and no others."""

import re
from pathlib import Path

import pytest

from batches import wire
from workers.failures import Failure

ROOT = Path(__file__).resolve().parent.parent.parent
# These have pages of their own.
ELSEWHERE = ("webhooks", "live", "services_api", "tests", "migrations", "management", "sim", "console")
# How a code is written down where it is made, but for the two closed sets that are imported.
WRITTEN = (
    r'\bcode ?= ?"([a-z_]+)"',
    r'\b(?:_Invalid|LineError)\(\s*"([a-z_]+)"',
    r'\b_refusal\("([a-z_]+)"',
    r'\bleases\.abort\w*, [^)]*?"([a-z_]+)"',
    r'\b(?:FILES_GONE|RATE_LIMITED) = "([a-z_]+)"',
)


def _codes_in_the_code() -> set[str]:
    found = {failure.code for failure in Failure} | {wire.EXPIRED[0], wire.CANCELLED[0]}
    for room in ("vbatch_site", "files", "batches", "workers"):
        for path in (ROOT / room).rglob("*.py"):
            if not set(path.relative_to(ROOT).parts) & set(ELSEWHERE):
                text = path.read_text()
                found |= {code for pattern in WRITTEN for code in re.findall(pattern, text)}
    return found


def test_the_page_lists_every_error_code_and_no_other() -> None:
    page = (ROOT / "docs" / "formats.md").read_text()
    listed = re.findall(r"^\| `([a-z_]+)` \| (?:request|batch|line)", page, re.MULTILINE)
    assert listed == sorted(set(listed))
    assert set(listed) == _codes_in_the_code()


def test_tokens_that_no_row_holds_are_not_counted() -> None:
    usage = b'{"usage": {"prompt_tokens": %d, "completion_tokens": %d, "prompt_tokens_details": {"cached_tokens": %d}}}'
    assert wire.read_usage(usage % (-1, 2**31, -2)) == wire.Usage()
    assert wire.read_usage(usage % (3, 2**31 - 1, 1)) == wire.Usage(3, 1, 2**31 - 1)


@pytest.mark.parametrize(
    ("page", "sources"),
    [
        ("webhooks", ["batches/webhooks"]),
        ("live", ["workers/live"]),
        ("services", ["workers/services_api", "workers/orders.py", "workers/recipes.py"]),
    ],
)
def test_codes_of_their_own_are_on_the_pages_of_webhooks_live_requests_and_services(
    page: str, sources: list[str]
) -> None:
    paths = [path for source in sources for path in [ROOT / source, *(ROOT / source).rglob("*.py")] if path.is_file()]
    text = "\n".join(path.read_text() for path in paths)
    pairs = re.findall(r'\bcode="([a-z_]+)"|_not_now\([^"]+"([a-z_]+)"', text)
    # A recipe's refusal ends with its code.
    codes = {one or other for one, other in pairs}
    codes |= set(re.findall(r'RecipeError\((?:[^()]|\([^()]*\))*?"([a-z_]+)",?\s*\)', text))
    listed = set(re.findall(r"`([a-z_]+)`", (ROOT / "docs" / f"{page}.md").read_text()))
    assert codes - _codes_in_the_code() - listed == set()
    assert codes


def test_no_code_is_made_in_a_way_that_the_search_does_not_see() -> None:
    for room in ("vbatch_site", "files", "batches", "workers"):
        for path in (ROOT / room).rglob("*.py"):
            if set(path.relative_to(ROOT).parts) & set(ELSEWHERE):
                continue
            named = set(re.findall(r"\bcode=([A-Z_]+)\b", path.read_text()))
            assert named <= {"FILES_GONE", "RATE_LIMITED"}, path
