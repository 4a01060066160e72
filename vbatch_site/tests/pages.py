"""The pages of the documentation, and what stands on them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

# Fences whose content is run or parsed, and those that are only shown.
RUN = {"python", "sh", "bash", "typescript", "json", "yaml"}
SHOWN = {"text", "ini", "nginx", "toml", "dockerfile", "promql", "csv"}

# Pages whose code is run. A new page is added here by somebody who has read what it does to the machine.
TRIED = {
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "api", "connecting", "formats", "getting-started", "live", "observability", "operating", "preflight",
            "security", "services", "steering", "webhooks",
        )
    ),
    "examples/README.md",
}  # fmt: skip

_FENCE = re.compile(r"^```(\w*)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    heading: str  # the one above it
    language: str
    note: str  # behind the language
    text: str

    @property
    def is_run(self) -> bool:
        """Whether it says nothing against being run."""
        return self.language in RUN and not self.note


def pages() -> list[Path]:
    """Return every page, those of the examples too."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"]
    return [*found, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("README.md"))]


def name_of(page: Path) -> str:
    """Return a page's path below the root."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return a page's fenced blocks, in their order."""
    text = page.read_text()
    found = []
    for match in _FENCE.finditer(text):
        before = text[: match.start()]
        headings = _headings(before)
        line = before.count("\n") + 1
        language, note, content = match.groups()
        found.append(Block(name_of(page), line, headings[-1] if headings else "", language, note.strip(), content))
    return found


def untyped(typescript: str) -> str:
    """Return a block without the types of its parameters, which not every node knows."""
    return re.sub(r"(\w): (?:string|Record<string, string>)(?=[,)])", r"\1", typescript)


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Return where a page's links lead, those to other hosts left out."""
    return [link for link in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings, as they are made into addresses."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _headings(prose(page)))
    return {heading.replace(" ", "-") for heading in plain}


def _headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
