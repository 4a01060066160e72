"""How many services to have for the work that waits. Pure: no Django.

Every model with work gets one service, the one that has waited longest first; what is left of the limit goes where most
lines wait for each service. A service that nobody has work for is stopped after a while, or at once when another
model needs its place.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

# A service that its time limit ends so soon is as good as gone: its successor is asked for now.
LEAD = timedelta(seconds=90)
# Work that waits so long for a place takes one from a model that has had it for as long.
MAX_WAIT = timedelta(minutes=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an operator sets."""

    least: int  # services that are not stopped as idle
    most: int
    idle: timedelta
    lines: int  # waiting lines for each service


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Work for one model."""

    model: str
    lines: int
    since: datetime  # of the oldest


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A service that was started for batches and has not ended."""

    id: int
    model: str
    since: datetime
    used_at: datetime
    ends_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: models to start one service of each time they are named, and services to stop."""

    starts: tuple[str, ...]
    stops: tuple[int, ...]


def plan(demands: Sequence[Demand], services: Sequence[Running], limits: Limits, now: datetime) -> Plan:
    """Return what brings services and demand together."""
    wanted = {demand.model: max(1, math.ceil(demand.lines / limits.lines)) for demand in demands}
    lines = {demand.model: demand.lines for demand in demands}
    lasting = [service for service in services if service.ends_at is None or service.ends_at - now > LEAD]
    have = Counter(service.model for service in lasting)
    starts: list[str] = []
    stops: list[Running] = []

    def room() -> int:
        return limits.most - (len(services) - len(stops)) - len(starts)

    def start(model: str) -> None:
        starts.append(model)
        have[model] += 1

    def stop(service: Running) -> None:
        stops.append(service)
        if service in lasting:
            have[service.model] -= 1

    def is_surplus(service: Running) -> bool:
        return have[service.model] > wanted.get(service.model, 0)

    by_use = sorted(services, key=lambda service: service.used_at)
    for demand in sorted(demands, key=lambda demand: (demand.since, demand.model)):
        if have[demand.model]:
            continue
        if room() <= 0:
            victim = next((s for s in by_use if s not in stops and is_surplus(s)), None)
            if victim is None and now - demand.since > MAX_WAIT:
                victim = _longest_served([s for s in by_use if s not in stops], have, now)
            if victim is None:
                continue
            stop(victim)
        start(demand.model)
    while room() > 0:
        short = [model for model in wanted if have[model] < wanted[model]]
        if not short:
            break
        start(max(short, key=lambda model: (lines[model] / max(have[model], 1), model)))
    for service in by_use:
        is_idle = now - max(service.used_at, service.since) > limits.idle
        if service not in stops and is_idle and is_surplus(service) and len(services) - len(stops) > limits.least:
            stop(service)
    return Plan(tuple(starts), tuple(service.id for service in stops))


def _longest_served(services: Sequence[Running], have: Counter[str], now: datetime) -> Running | None:
    """Return a service of the model that has most, if it has run for long."""
    served = [service for service in services if now - service.since > MAX_WAIT]
    return min(served, key=lambda service: (-have[service.model], service.since), default=None)
