"""What pages load besides themselves."""

import re
from pathlib import Path

import unfold
from django.conf import settings

STATIC = Path(settings.BASE_DIR) / "vbatch_site/static/console/fonts"


def test_the_cut_icon_font_has_every_icon_that_unfold_shows() -> None:
    have = set((STATIC / "icons.txt").read_text().split())
    shown: set[str] = set()
    for path in Path(unfold.__file__).parent.rglob("*.html"):
        shown.update(re.findall(r"material-symbols-outlined[^>]*>\s*([a-z0-9_]+)\s*<", path.read_text()))
    assert len(shown) > 40
    assert shown <= have, "run scripts/subset_fonts.py"


_LAST = 0x3000  # what is looked at; all signs of Western text are before it


def _characters(style_sheet: str) -> list[set[int]]:
    """Return the characters that each font of a style sheet is for."""
    found = []
    for ranges in re.findall(r"unicode-range: ([^;]+);", (STATIC / style_sheet).read_text()):
        ends = [part.strip().removeprefix("U+").split("-") for part in ranges.split(",")]
        found.append(
            {code for first, *last in ends for code in range(int(first, 16), int((last or [first])[0], 16) + 1)}
        )
    return found


def test_no_character_is_in_a_cut_font_and_in_a_whole_one() -> None:
    cut, whole = _characters("fonts.css"), _characters("whole.css")
    assert len(cut) == len(whole) == 4
    for ours, others in zip(cut, whole, strict=True):
        assert not ours & others
        assert set(range(0xA0, _LAST + 1)) <= ours | others
