"""How many lines an engine gets beside live requests: the rule alone, against an engine made of arithmetic."""

import itertools
import random
from dataclasses import dataclass, field

import pytest

from workers.admission import (
    APART,
    FIRST,
    LEAST,
    QUIET_SECONDS,
    UNLIMITED,
    WINDOW_SECONDS,
    Admission,
    Traffic,
    quantile,
)

IDLE = 0.1  # seconds to the first token without lines
LINES = 128


@dataclass
class Engine:
    """Its first tokens slow down with the lines in flight; each line ends after a time in proportion to them."""

    slowdown: float  # per line, in parts of the idle time
    chance: random.Random = field(default_factory=lambda: random.Random(7))
    lines: float = 0.0
    times: list[tuple[float, float]] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)

    def run(self, admission: Admission, begin: int, end: int, *, wanted: int, live: float) -> list[float]:
        """Live through some seconds with so many lines wanted and live requests a second; return their times."""
        found = []
        for second in range(begin, end):
            # A quarter of what is above the limit ends in a second; what is below it starts at once.
            target = min(wanted, admission.limit)
            self.lines = target if self.lines <= target else max(target, self.lines * 0.75)
            for _ in range(int(live) + (self.chance.random() < live % 1)):
                seconds = IDLE * (1 + self.slowdown * self.lines) * self.chance.uniform(0.8, 1.3)
                self.times.append((second + 0.5, seconds))
                found.append(seconds)
            seen_at = self.times[-1][0] if self.times else -1e9
            admission.look(Traffic(seen_at, self.times[-64:]), int(self.lines), second + 1)
            self.limits.append(admission.limit)
        return found


def test_without_live_requests_there_is_no_limit() -> None:
    admission = Admission()
    Engine(0.1).run(admission, 0, 100, wanted=LINES, live=0)
    assert admission.limit == UNLIMITED


def test_the_limit_settles_where_live_requests_take_about_what_is_borne() -> None:
    for slowdown in (0.02, 0.05, 0.1, 0.2):
        admission, engine = Admission(), Engine(slowdown)
        idle = engine.run(admission, 0, 60, wanted=0, live=3)
        beside = engine.run(admission, 60, 400, wanted=LINES, live=3)
        assert quantile(beside, 0.99) < 3 * quantile(idle, 0.99), slowdown
        # At the bound itself it would be 1 / slowdown; a half of that is not left unused.
        settled = sum(engine.limits[-100:]) / 100
        assert 0.5 / slowdown < settled < 1.5 / slowdown, slowdown


def test_an_engine_that_lines_do_not_slow_down_gets_them_all_in_the_end() -> None:
    admission, engine = Admission(), Engine(0.0)
    engine.run(admission, 0, 30, wanted=0, live=3)
    engine.run(admission, 30, 400, wanted=LINES, live=3)
    assert admission.limit >= LINES


def test_the_limit_is_small_as_soon_as_live_requests_come_and_gone_a_while_after_them() -> None:
    admission, engine = Admission(), Engine(0.1)
    engine.run(admission, 0, 30, wanted=LINES, live=0)
    engine.run(admission, 30, 31, wanted=LINES, live=2)
    assert admission.limit == FIRST
    engine.run(admission, 31, 60, wanted=LINES, live=2)
    engine.run(admission, 60, 60 + int(QUIET_SECONDS) - 1, wanted=LINES, live=0)
    assert admission.limit <= FIRST
    engine.run(admission, 79, 85, wanted=LINES, live=0)
    assert admission.limit == UNLIMITED


def test_without_times_of_live_requests_that_are_there_the_limit_is_the_least() -> None:
    admission, engine = Admission(), Engine(0.01)
    engine.run(admission, 0, 30, wanted=0, live=3)
    engine.run(admission, 30, 90, wanted=LINES, live=3)
    assert admission.limit > 2 * FIRST
    stale = engine.times[-64:]
    for second in range(91, 93 + int(WINDOW_SECONDS)):
        admission.look(Traffic(float(second), stale), LEAST, second)
    assert admission.limit == LEAST


def test_a_model_that_was_never_seen_without_lines_is_judged_by_what_the_least_do_to_it() -> None:
    admission, engine = Admission(), Engine(0.1)
    engine.run(admission, 0, 400, wanted=LINES, live=2)
    settled = sum(engine.limits[-100:]) / 100
    assert LEAST + 2 < settled < 25


def test_lines_start_one_after_the_other_while_there_are_live_requests_and_together_without() -> None:
    admission = Admission()
    assert [admission.pause(1.0) for _ in range(3)] == [0, 0, 0]
    usual = quantile(Engine(0.0).run(admission, 0, 20, wanted=0, live=3), 0.9)
    now, started = 60.0, list[float]()
    while len(started) < 5:
        if wait := admission.pause(now):
            now += wait
        else:
            started.append(now)
    apart = [after - before for before, after in itertools.pairwise(started)]
    assert apart == pytest.approx([APART * usual] * 4)


def test_a_clock_that_is_set_back_does_not_keep_the_limit_from_being_learned() -> None:
    admission, before, after = Admission(), Engine(0.02), Engine(0.2)
    before.run(admission, 0, 30, wanted=0, live=3)
    before.run(admission, 30, 150, wanted=LINES, live=3)
    # An hour earlier, on an engine that lines make ten times as slow.
    after.run(admission, -3600, -3480, wanted=LINES, live=3)
    assert after.limits[-1] < 0.5 * before.limits[-1]
