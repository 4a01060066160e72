"""What many strikes came to, as a table: docs/reliability.md has it, and what benchmarks found, between markers."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from vbatch_site.tests.chaos import faults
from vbatch_site.tests.chaos.fight import Outcome
from vbatch_site.tests.servers import ROOT

PAGE = ROOT / "docs" / "reliability.md"
_HEAD = "| fault | how | times | lines | lost | doubled | run again | seconds to recover: median | most |\n"
_RULE = "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"


@dataclass
class _Tally:
    how: str
    times: int = 0
    lines: int = 0
    lost: int = 0
    doubled: int = 0
    repeated: int = 0
    seconds: list[float] = field(default_factory=list)


class Report:
    """Adds up outcomes by fault."""

    def __init__(self) -> None:
        self._tallies: dict[str, _Tally] = {}
        self._order: dict[str, int] = defaultdict(int)

    def add(self, outcome: Outcome) -> None:
        """Count one strike, under its fault or among those of several at once."""
        strike = outcome.strike
        if strike.steering:
            name = f"any of these, another batch {strike.steering}"
            how = "over the API, at a chance moment; expiry by its row"
        elif len(strike.faults) > 1:
            name, how = f"{len(strike.faults)} of these at once", "drawn by the seed"
        else:
            name, how = f"{strike.faults[0]}, {strike.moment}", faults.ALL[strike.faults[0]].how
        self.count(name, how, outcome)

    def count(self, name: str, how: str, outcome: Outcome) -> None:
        """Count one strike under a name."""
        tally = self._tallies.setdefault(name, _Tally(how))
        tally.times += 1
        tally.lines += outcome.verdict.lines
        tally.lost += outcome.verdict.lost
        tally.doubled += outcome.verdict.doubled
        tally.repeated += outcome.repeated
        tally.seconds += outcome.seconds.values()

    def table(self) -> str:
        """Return the table in Markdown."""
        rows = []
        # Combinations last.
        for name, t in sorted(self._tallies.items(), key=lambda item: ("of these" in item[0], item[0])):
            seconds = f"{median(t.seconds):.1f} | {max(t.seconds):.1f}" if t.seconds else "- | -"
            found = f"{t.times} | {t.lines:,} | {t.lost} | {t.doubled} | {t.repeated:,} | {seconds}"
            rows.append(f"| {name} | {t.how} | {found} |\n")
        return _HEAD + _RULE + "".join(rows)


def write(maker: str, table: str, said: str, page: Path = PAGE) -> None:
    """Put a table and a sentence about its making between the markers that its maker has on the page."""
    begin, end = f"<!-- made by `{maker}`: begin -->", "<!-- end -->"
    before, found, rest = page.read_text().partition(begin)
    if not found:
        raise ValueError(f"{page} has no place for {maker}")
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{said}\n\n{table}\n{end}{after}")
