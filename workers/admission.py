"""How many lines of batches an engine may have while people use it live. Pure: no Django.

Priority alone lets a live request past the lines that wait, not past those that the engine is working on: each of them
makes every step slower. How many are harmless depends on the model, the machine and the lines, so it is found out: the
limit grows by one while live requests get their first token about as fast as without batches, and is cut when they
don't. Where that is not known it is small. Lines that start together are read together by the engine, in one long step
that a live request has to wait for; so they start one after the other.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

UNLIMITED = 1 << 30
# Lines that hardly any engine's live requests notice; the batch still gets on.
LEAST = 4
# Lines to begin with when live requests come.
FIRST = 8
# Part of the live requests that are to have their first token in time; further out single outliers would decide.
QUANTILE = 0.9
# Time to the first token that is borne, in times of what it is without batches. The 99th percentile moves about half
# as much again, and is to stay below three times.
BORNE = 2.0
CUT = 0.7  # of the lines in flight, when it takes longer
# Between two lines that start, in times of what a live request's first token takes without batches: about one is read
# in a step, whatever a step takes on this machine.
APART = 0.7
# Requests whose times are looked at together.
WINDOW_SECONDS = 15.0
LEAST_SAMPLES = 3
KEPT_SAMPLES = 64
# Without a live request for so long, there is no limit.
QUIET_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Traffic:
    """What live requests to one engine did lately, by all web processes."""

    seen_at: float = -math.inf  # unix time at which one was last in flight
    first_tokens: Sequence[tuple[float, float]] = ()  # unix time of a first token, and the seconds it took


class Admission:
    """The limit for one engine's model; it remembers how fast the model is without batches."""

    def __init__(self) -> None:
        self.limit = UNLIMITED
        self._idle: deque[float] = deque(maxlen=KEPT_SAMPLES)  # seconds to the first token without lines
        self._least: deque[float] = deque(maxlen=KEPT_SAMPLES)  # with so few lines that it should not matter
        self._recent: deque[tuple[float, float]] = deque(maxlen=KEPT_SAMPLES)
        self._read_to = -math.inf
        self._known_at = -math.inf
        self._lines = 0  # in flight at the last look
        self._started_at = -math.inf

    @property
    def is_live(self) -> bool:
        """Whether people use the engine."""
        return self.limit < UNLIMITED

    def pause(self, now: float) -> float:
        """Return the seconds that the next line has to wait; where there are none it counts as started now."""
        usual = self._usual() if self.is_live else None
        wait = self._started_at + APART * usual - now if usual is not None else 0.0
        if wait <= 0:
            self._started_at = now
        return max(0.0, wait)

    def look(self, traffic: Traffic, lines: int, now: float) -> None:
        """Set the limit by what is known at a unix time, with so many lines in flight; called about once a second."""
        if self._read_to > now + WINDOW_SECONDS:
            # The clock was set back: what comes from now on is newer all the same.
            self._read_to = self._known_at = -math.inf
            self._recent.clear()
        fresh = [(at, seconds) for at, seconds in sorted(traffic.first_tokens) if at > self._read_to]
        if fresh:
            self._read_to = self._known_at = fresh[-1][0]
        # What was in flight while these requests waited is between then and now.
        lines, self._lines = max(lines, self._lines), lines
        if lines <= LEAST:
            (self._least if lines else self._idle).extend(seconds for _, seconds in fresh)
        self._recent.extend(fresh)
        while self._recent and self._recent[0][0] < now - WINDOW_SECONDS:
            self._recent.popleft()
        if now - traffic.seen_at > QUIET_SECONDS:
            self.limit = UNLIMITED
        elif not self.is_live:
            self.limit = FIRST
            self._known_at = now
            self._recent.clear()
        elif self._known_at < now - WINDOW_SECONDS:
            self.limit = LEAST
        elif self._lines <= self.limit:
            # While lines above the limit are still being ended, the times say nothing of the limit.
            self._adapt(bool(fresh))

    def _adapt(self, is_fresh: bool) -> None:
        usual = self._usual()
        if usual is None:
            self.limit = LEAST
        elif len(self._recent) < LEAST_SAMPLES:
            return
        elif quantile([seconds for _, seconds in self._recent], QUANTILE) > BORNE * usual:
            self.limit = max(LEAST, math.floor(min(self.limit, self._lines) * CUT))
            # The next look must not punish the same requests again.
            self._recent.clear()
        elif is_fresh and self._lines >= self.limit - 1:
            self.limit += 1

    def _usual(self) -> float | None:
        """Return the time to the first token without batches, None while it is not known."""
        for samples in (self._idle, self._least):
            if len(samples) >= LEAST_SAMPLES:
                return quantile(samples, QUANTILE)
        return None


def quantile(values: Sequence[float] | deque[float], part: float) -> float:
    """Return the least value that this part of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]
