"""Cut Unfold's fonts down to what pages show: `python scripts/subset_fonts.py` writes vbatch_site/static/console/fonts.

Needs fonttools and brotli, which nothing else here does. Run it again after an upgrade of Unfold;
vbatch_site/tests/console/test_assets.py fails when Unfold has an icon that the cut font has not.
"""

import re
import sys
from pathlib import Path

import unfold
from fontTools import subset
from fontTools.ttLib import TTFont

UNFOLD = Path(unfold.__file__).parent
FONTS = UNFOLD / "static/unfold/fonts"
OUT = Path(__file__).resolve().parent.parent / "vbatch_site/static/console/fonts"
# Western and Central European text, and the signs that pages use; the rest comes from Unfold's whole font.
TEXT = "U+0020-007E, U+00A0-017F, U+2010-2027, U+202F-2030, U+2039-203A, U+20AC, U+2190-2193, U+2212, U+2264-2265"


def icon_words() -> set[str]:
    """Return every word of Unfold's sources that may name an icon."""
    found: set[str] = set()
    for path in UNFOLD.rglob("*.html"):
        text = path.read_text()
        for inner in re.findall(r"material-symbols-outlined[^>]*>(.*?)</", text, re.DOTALL):
            found.update(re.findall(r"[a-z][a-z0-9_]+", inner))
        found.update(re.findall(r"""icon=["']([a-z0-9_]+)["']""", text))
    for path in UNFOLD.rglob("*.py"):
        found.update(re.findall(r"""icon=["']([a-z0-9_]+)["']""", path.read_text()))
    return found


def ligatures(font: TTFont) -> dict[str, str]:
    """Return each icon's glyph by its name."""
    names = {glyph: chr(code) for code, glyph in font.getBestCmap().items()}
    found = {}
    for lookup in font["GSUB"].table.LookupList.Lookup:
        for table in lookup.SubTable:
            table = getattr(table, "ExtSubTable", table)
            for first, rows in getattr(table, "ligatures", {}).items():
                for row in rows:
                    found["".join(names[part] for part in (first, *row.Component))] = row.LigGlyph
    return found


def _write(font: TTFont, options: subset.Options, name: str, **what: object) -> None:
    cutter = subset.Subsetter(options)
    cutter.populate(**what)
    cutter.subset(font)
    font.flavor = "woff2"
    font.save(OUT / name)
    sys.stdout.write(f"{name}: {(OUT / name).stat().st_size} bytes\n")


def main() -> None:
    """Write the fonts and the list of icons."""
    OUT.mkdir(parents=True, exist_ok=True)
    for weight in ("Regular", "Medium", "SemiBold", "Bold"):
        options = subset.Options(layout_features=["kern", "tnum", "ccmp", "mark", "locl"], hinting=False)
        _write(
            TTFont(FONTS / f"inter/Inter-{weight}.woff2"),
            options,
            f"inter-{weight.lower()}.woff2",
            unicodes=subset.parse_unicodes(TEXT.replace("U+", "").replace(" ", "")),
        )
    icons = TTFont(FONTS / "material-symbols/Material-Symbols-Outlined.woff2")
    known = ligatures(icons)
    wanted = sorted(icon_words() & known.keys())
    letters = sorted({letter for name in wanted for letter in name})
    # Glyphs alone: by letters, every icon whose name they spell would be kept.
    glyphs = [known[name] for name in wanted] + [icons.getBestCmap()[ord(letter)] for letter in letters]
    options = subset.Options(layout_features=["*"], hinting=False, layout_closure=False)
    _write(icons, options, "icons.woff2", glyphs=glyphs, unicodes=[ord(letter) for letter in letters])
    (OUT / "icons.txt").write_text("".join(f"{name}\n" for name in wanted))


if __name__ == "__main__":
    main()
