"""Rates, and the range in which a batch ends."""

import heapq
import random
from collections import Counter
from math import exp, sqrt
from statistics import fmean, median

import pytest

from batches.progress import (
    FEWEST_LINES,
    SAMPLE_SECONDS,
    Sample,
    Span,
    costs,
    hit_rate,
    percent,
    rates,
    time_left,
    wait,
)

Line = tuple[float, float]  # when it ended and how long it took, seconds


def _run(chance: random.Random) -> list[Line]:
    """Return the lines of a made-up batch by their ends.

    The engine has so many places; lines differ in length, the longer ones may come first, and the machine's speed
    wanders: other batches, warm caches, hot cards.
    """
    places = chance.choice([8, 32, 128, 512])
    service = 10 ** chance.uniform(-0.7, 1.3)  # seconds, 0.2 to 20
    lines = chance.randint(150, 4000)
    spread = chance.uniform(0.1, 1.0)  # of the logarithm of a line's length
    lengths = [chance.lognormvariate(0, spread) for _ in range(lines)]
    if chance.random() < 0.3:
        lengths.sort(key=lambda length: length <= 3)
    sway, memory = chance.uniform(0, 0.3), chance.uniform(10, 300)  # of the logarithm of the speed; seconds
    keep = exp(-1 / memory)
    speeds = [chance.gauss(0, sway)]
    busy = [0.0] * min(places, lines)
    found = []
    for length in lengths:
        start = heapq.heappop(busy)
        while len(speeds) <= start:
            speeds.append(keep * speeds[-1] + sqrt(1 - keep**2) * chance.gauss(0, sway))
        duration = service * length * exp(speeds[int(start)])
        found.append((start + duration, duration))
        heapq.heappush(busy, start + duration)
    return sorted(found)


def _samples(lines: list[Line], now: float, offset: float) -> list[Sample]:
    done: Counter[int] = Counter()
    spent: Counter[int] = Counter()
    for end, duration in lines:
        if end <= now:
            at = int((offset + end) // SAMPLE_SECONDS)
            done[at] += 1
            spent[at] += int(duration * 1000)
    return [Sample(at * SAMPLE_SECONDS, count, spent[at]) for at, count in sorted(done.items())]


def _judge(runs: int, seed: int) -> list[tuple[float, Span | None, float]]:
    """Return how far each run was, the range it was given, and the truth."""
    chance = random.Random(seed)
    found = []
    for _ in range(runs):
        lines = _run(chance)
        offset = chance.uniform(1e9, 1e9 + 1000)
        for part in (0.1, 0.3, 0.6, 0.9):
            now = lines[int(len(lines) * part)][0]
            left = sum(end > now for end, _ in lines)
            span = time_left(_samples(lines, now, offset), offset, offset + now, left)
            found.append((part, span, lines[-1][0] - now))
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_the_range_holds_the_truth_in_four_of_five_runs_and_still_says_something(seed: int) -> None:
    judged = _judge(150, seed)
    given = [(part, span, truth) for part, span, truth in judged if span is not None]
    assert len(given) > 0.9 * len(judged)
    assert fmean(span.earliest <= truth <= span.latest for _, span, truth in given) >= 0.8
    # Times the time that was really left.
    assert median((span.latest - span.earliest) / max(truth, 1.0) for _, span, truth in given) < 1.6


def test_nothing_is_said_before_thirty_lines_are_finished() -> None:
    few = [Sample(1000.0, FEWEST_LINES - 1, 10)]
    assert time_left(few, 1000.0, 1010.0, 100) is None
    assert time_left([Sample(1000.0, FEWEST_LINES, 10)], 1000.0, 1010.0, 100) is not None


def test_nothing_is_left_of_a_batch_that_is_done() -> None:
    assert time_left([], 0.0, 100.0, 0) == Span(0.0, 0.0)


def test_a_batch_that_stood_still_for_the_whole_window_gets_no_range() -> None:
    assert time_left([Sample(0.0, 1000, 10)], 0.0, 5000.0, 100) is None


def test_a_steady_batch_gets_a_narrow_range() -> None:
    steady = [Sample(at, 50, 10) for at in range(0, 600, SAMPLE_SECONDS)]
    span = time_left(steady, 0.0, 600.0, 1500)
    assert span is not None
    assert 180 < span.earliest < 300 < span.latest < 480


def test_rates_are_those_of_the_last_minute_and_of_all_the_time() -> None:
    samples = [Sample(at, 10, 0) for at in range(0, 240, SAMPLE_SECONDS)]
    samples += [Sample(at, 40, 0) for at in range(240, 300, SAMPLE_SECONDS)]
    found = rates(samples, 0.0, 300.0, 24 * 10 + 6 * 40)
    assert found.last_minute == pytest.approx(4.0)
    assert found.since_start == pytest.approx(480 / 300)


def test_a_stretch_that_has_only_begun_counts_with_the_time_that_it_has() -> None:
    assert rates([Sample(0.0, 10, 0)], 0.0, 4.0, 10).last_minute == pytest.approx(2.5)


def test_shares_and_percentages_stay_in_their_bounds() -> None:
    assert (percent(0, 0), percent(5, 10), percent(11, 10)) == (100.0, 50.0, 100.0)
    assert (hit_rate(0, 0), hit_rate(50, 100), hit_rate(200, 100)) == (None, 0.5, 1.0)


def _worked(chance: random.Random, prefill: float, decode: float, mix: float, stretches: int) -> list[Sample]:
    """Return what a full engine did, with about so much of its time spent on prompts."""
    found = []
    for i in range(stretches):
        part = min(0.95, max(0.05, chance.gauss(mix, 0.15)))
        prompts, answers = SAMPLE_SECONDS * part / prefill, SAMPLE_SECONDS * (1 - part) / decode
        found.append(Sample(float(i * SAMPLE_SECONDS), max(1, int(answers / 100)), 1000, int(prompts), int(answers)))
    return found


def test_prefill_and_decode_costs_are_learned_from_mixed_work() -> None:
    chance = random.Random(5)
    for _ in range(50):
        prefill, decode = 10 ** chance.uniform(-5, -3), 10 ** chance.uniform(-4, -2)
        found = costs(_worked(chance, prefill, decode, chance.uniform(0.3, 0.7), 30))
        assert found is not None
        assert found.prefill == pytest.approx(prefill, rel=0.1)
        assert found.decode == pytest.approx(decode, rel=0.1)


def test_work_of_one_kind_is_priced_by_its_tokens() -> None:
    found = costs([Sample(float(at), 50, 0, 500, 0) for at in range(0, 100, SAMPLE_SECONDS)])
    assert found is not None
    assert found.seconds(1000, 10_000.0) == pytest.approx(200.0)
    assert found.seconds(1000, None) == pytest.approx(200.0)


def test_too_little_work_teaches_nothing() -> None:
    assert costs([]) is None
    assert costs([Sample(0.0, FEWEST_LINES - 1, 0, 10, 10)]) is None


def test_a_batch_that_waits_gets_a_range_that_holds_its_end_in_four_of_five_runs() -> None:
    chance = random.Random(11)
    held = []
    for _ in range(300):
        prefill, decode = 10 ** chance.uniform(-5, -3), 10 ** chance.uniform(-4, -2)
        known = costs(_worked(chance, prefill, decode, chance.uniform(0.2, 0.8), chance.randint(5, 100)))
        assert known is not None
        lines, prompt = chance.randint(10, 5000), chance.uniform(20, 4000)
        # Other prompts than those it learned from, guessed at by their bytes, and answers of another length.
        answer = known.decoded * chance.lognormvariate(0, 0.3)
        own = lines * (prompt * prefill + answer * decode)
        guessed = known.seconds(lines, lines * prompt * chance.uniform(0.8, 1.3))
        ahead = own * chance.choice([0, 0.5, 2])
        # The work ahead goes first, beside it, or after it, and the model may have to be loaded.
        truth = own + ahead * chance.random() + chance.choice([0, 0, 40])
        span = wait(guessed, ahead)
        held.append(span.earliest <= truth <= span.latest)
    assert fmean(held) >= 0.8
