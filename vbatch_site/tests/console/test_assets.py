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
