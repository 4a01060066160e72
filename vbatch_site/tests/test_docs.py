"""What the README says is so."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_every_setting_is_in_the_readme_and_nothing_else_is() -> None:
    read = set(re.findall(r'"((?:VBATCH|DATABASE)_[A-Z_]+)"', (ROOT / "vbatch_site" / "settings.py").read_text()))
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    assert table == read


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)", README)) <= targets


def test_every_management_command_in_the_readme_exists() -> None:
    ours = {path.stem for room in ("vbatch_site", "workers") for path in (ROOT / room).glob("management/commands/*.py")}
    named = set(re.findall(r"manage\.py ([a-z_]+)", README))
    assert named
    assert named <= ours
