"""Percentages, rates, and when a batch will be done. Pure: no Django.

The remaining time is given as a range that is to hold in four of five cases. It is made from what was committed in
stretches of ten seconds: how much the rate of the last minutes scattered tells how much it may scatter further on, and
where the last third of them was faster or slower than the rest, both rates bound the range.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, sqrt
from statistics import fmean, pvariance
from typing import NamedTuple

SAMPLE_SECONDS = 10  # fine enough for the rate of the last minute, coarse enough for one row a batch and stretch
FEWEST_LINES = 30  # with fewer finished, the range would say nothing
WINDOW_SECONDS = 600.0  # what is older says little about now
LAST_MINUTE = 60.0

_BLOCKS = 8  # parts of the window whose rates are compared
_FEWEST_BLOCKS = 4  # with fewer, scatter can't be measured
_UNKNOWN_SCATTER = 0.35  # of the rate of a batch that has only just begun
_LEAST_SCATTER = 0.06  # machines are never steadier than this over minutes
_BEYOND = 0.20  # more for a future that is long against what was seen of the past
_LAST_LINES = 5.0  # times a line's mean time: the last ones run alone, and the longest of them ends later
_FILLING = 3.0  # how much faster, in the logarithm, an engine may get that was just being filled
_QUEUED = 0.6  # what the guess of a line's cost may be wrong by, in the logarithm
_LOAD_SECONDS = 60.0  # that the model may have to be loaded first
_SIDES = 1.4  # standard deviations to each side; Student's, for few blocks, at 80 %


class Sample(NamedTuple):
    """What was committed in one stretch of SAMPLE_SECONDS."""

    at: float  # unix seconds at which the stretch began
    lines: int
    milliseconds: int = 0  # that the engine spent on the lines, summed
    prefilled: int = 0  # prompt tokens that were computed
    decoded: int = 0  # tokens generated


class Costs(NamedTuple):
    """What lines of one model cost while its engine is full."""

    line: float  # seconds for the mean line
    prefill: float  # seconds for one prompt token
    decode: float  # seconds for one generated token
    decoded: float  # generated tokens of the mean line

    def seconds(self, lines: int, prompt_tokens: float | None) -> float:
        """Return how long so many lines take, with so many prompt tokens in all if that is known."""
        if prompt_tokens is None or not (self.prefill or self.decode):
            return lines * self.line
        return prompt_tokens * self.prefill + lines * self.decoded * self.decode


class Span(NamedTuple):
    """A range of time: seconds from now, or unix seconds."""

    earliest: float
    latest: float


@dataclass(frozen=True, slots=True)
class Rates:
    """Lines a second."""

    last_minute: float
    since_start: float


def percent(done: int, total: int) -> float:
    """Return how much of the total is done; all of nothing is."""
    return 100.0 if total <= 0 else 100.0 * min(done, total) / total


def hit_rate(cached_tokens: int, input_tokens: int) -> float | None:
    """Return the share of the prompt tokens that did not have to be computed, None before there are any."""
    return None if input_tokens <= 0 else min(1.0, cached_tokens / input_tokens)


def rates(samples: Sequence[Sample], started: float, now: float, done: int) -> Rates:
    """Return how fast a batch is now and was on the whole, by its samples of at least the last minute."""
    since = max(started, now - LAST_MINUTE)
    recent = sum(sample.lines * _share(sample, since, now) for sample in samples)
    return Rates(recent / max(now - since, 1.0), done / max(now - started, 1.0))


def _share(sample: Sample, since: float, now: float) -> float:
    """Return how much of a sample lies in a span of time; the last stretch may have only begun."""
    end = min(sample.at + SAMPLE_SECONDS, now)
    return max(0.0, min(1.0, (end - max(sample.at, since)) / max(end - sample.at, 0.001)))


def time_left(samples: Sequence[Sample], started: float, now: float, left: int) -> Span | None:
    """Return how many seconds the lines that are left will take, None when too little is known.

    `samples` are of one batch, or of one model to judge what waits for it; `started` is when the first of these lines
    could have begun.
    """
    if left <= 0:
        return Span(0.0, 0.0)
    since = max(started, now - WINDOW_SECONDS)
    window = [sample for sample in samples if sample.at + SAMPLE_SECONDS > since]
    lines = sum(sample.lines * _share(sample, since, now) for sample in window)
    if sum(sample.lines for sample in samples) < FEWEST_LINES or lines <= 0:
        return None
    latency = sum(sample.milliseconds for sample in samples) / max(sum(sample.lines for sample in samples), 1) / 1000
    seconds = now - since
    if since == started and seconds > 2 * latency:
        # Nothing can be finished before the first line is.
        since += latency / 2
        seconds = now - since
    blocks = _block_rates(window, since, now)
    rate = lines / max(seconds, 1.0)
    horizon = left / rate
    slow = fast = rate
    if len(blocks) >= _FEWEST_BLOCKS:
        scatter = pvariance(blocks) / max(fmean(blocks), 1e-9) ** 2 * len(blocks) / (len(blocks) - 1)
        block = seconds / len(blocks)
        # Of the mean that was measured, and of the mean that is to come.
        variance = scatter * (1 / len(blocks) + min(1.0, block / horizon)) + 1 / lines + 1 / left
        recent = fmean(blocks[-max(1, len(blocks) // 3) :])
        if recent > 0:
            slow, fast = min(rate, recent), max(rate, recent)
    else:
        variance = _UNKNOWN_SCATTER**2 + 1 / lines + 1 / left
    deviation = sqrt(variance + _LEAST_SCATTER**2 + (_BEYOND * horizon / (horizon + seconds)) ** 2)
    # A batch that has not run for several lines' time was still filling the engine when its rate was measured.
    filling = _FILLING * latency / max(seconds, 1.0)
    return Span(
        left / fast * exp(-_SIDES * deviation - filling), left / slow * exp(_SIDES * deviation) + _LAST_LINES * latency
    )


def costs(samples: Sequence[Sample]) -> Costs | None:
    """Learn what a model's lines cost from what it did lately, a sample a stretch; None when that is too little.

    A stretch between two others was full of work, so that its seconds were spent on the tokens that it saw.
    """
    by_start = {sample.at: sample for sample in samples}
    lines = sum(sample.lines for sample in by_start.values())
    if lines < FEWEST_LINES:
        return None
    full = [s for s in by_start.values() if s.at - SAMPLE_SECONDS in by_start and s.at + SAMPLE_SECONDS in by_start]
    if not full:
        return Costs(len(by_start) * SAMPLE_SECONDS / lines, 0.0, 0.0, 0.0)
    line = len(full) * SAMPLE_SECONDS / max(sum(sample.lines for sample in full), 1)
    prefill, decode = _fit([(sample.prefilled, sample.decoded) for sample in full])
    return Costs(line, prefill, decode, sum(sample.decoded for sample in by_start.values()) / lines)


def _fit(work: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Return the two costs, neither negative, that best explain why each piece of work took one stretch."""
    xx = float(sum(x * x for x, _ in work))
    xy = float(sum(x * y for x, y in work))
    yy = float(sum(y * y for _, y in work))
    x, y = (float(sum(column)) for column in zip(*work, strict=True))
    determinant = xx * yy - xy * xy
    # Work of one mix only does not tell the two apart: then both share the cost by the tokens.
    if len(work) >= _FEWEST_BLOCKS and determinant > 1e-3 * xx * yy:
        first = (x * yy - y * xy) / determinant * SAMPLE_SECONDS
        second = (y * xx - x * xy) / determinant * SAMPLE_SECONDS
        if first >= 0 and second >= 0:
            return first, second
        return (x / xx * SAMPLE_SECONDS, 0.0) if second < 0 else (0.0, y / yy * SAMPLE_SECONDS)
    both = len(work) * SAMPLE_SECONDS / (x + y) if x + y else 0.0
    return both, both


def wait(own_seconds: float, seconds_ahead: float) -> Span:
    """Return when work that has not begun ends, in seconds: at best it shares the engine at once."""
    return Span(own_seconds * exp(-_QUEUED), (own_seconds + seconds_ahead) * exp(_QUEUED) + _LOAD_SECONDS)


def _block_rates(window: Sequence[Sample], since: float, now: float) -> list[float]:
    """Return the rates of equal parts of the window."""
    count = min(_BLOCKS, int((now - since) // SAMPLE_SECONDS))
    edges = [since + (now - since) * part / count for part in range(count + 1)] if count else []
    found = []
    for start, end in pairwise(edges):
        lines = 0.0
        for sample in window:
            until = min(sample.at + SAMPLE_SECONDS, now)
            common = min(until, end) - max(sample.at, start)
            if common > 0:
                lines += sample.lines * common / max(until - sample.at, 0.001)
        found.append(lines / (end - start))
    return found
