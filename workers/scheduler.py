"""Who runs next: which model a slot should have loaded, and which batch the next shard is taken from.

Pure: rows and a clock in, a choice out. Deadline, then a maximum wait, then priority, then fair share between
projects, then age. A swap of models has a price in seconds, and happens when what waits is worth it.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from batches.demand import Waiting

# Nothing waits longer than this for its turn while others are served, but for the swaps that come before its own.
MAX_WAIT = timedelta(minutes=5)
# People who wait for a model get it after this even from others who use the loaded one: what is left of the 120 s that
# a request waits is for the last answers of the loaded model and for the load.
LIVE_MAX_WAIT = timedelta(seconds=60)
# With models that are cheap to swap there is no reason to let anyone wait so long; below this, swaps would be all.
MIN_WAIT = timedelta(seconds=10)
# A model that waits for a swap waits about this many times what the swap there and the one back cost.
WAIT_PER_PRICE = 5
# A model that was just loaded works for at least so long, and at least for so many times what its load took.
MIN_RESIDENCE = timedelta(seconds=15)
RESIDENCE_PER_PRICE = 2
# Loading a second copy of a model that another slot serves must be worth its price so many times.
WORTH_A_COPY = 2
# Of a model that was never loaded or run here.
UNKNOWN_PRICE_SECONDS = 60.0
UNKNOWN_LINES_PER_SECOND = 10.0
# Stands for a model where a slot's GPUs are asked for by a service that somebody starts (workers/lending.py).
GIVE_WAY = ""
# Of live requests, and of batches that can wait no longer: before every priority.
_FIRST = -1000
# A batch is urgent when what is left of its window is less than so many times what its lines should take.
URGENT_FACTOR = 1.5
URGENT_MARGIN = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One engine slot, and what is known about the models it may load."""

    model: str | None  # loaded now
    since: datetime  # when it was ready
    busy: bool = False  # has lines in hand
    prices: Mapping[str, float] = field(default_factory=dict)  # seconds that a load, or a wake-up, takes
    rates: Mapping[str, float] = field(default_factory=dict)  # lines a second
    elsewhere: Mapping[str, int] = field(default_factory=dict)  # slots that have a model loaded, this one left out
    live: Mapping[str, datetime] = field(default_factory=dict)  # models that people wait for or use, and since when

    def price(self, model: str) -> timedelta:
        """Return what loading a model costs."""
        # A slot that gave way loads what it has now again.
        name = self.model or "" if model == GIVE_WAY else model
        return timedelta(seconds=self.prices.get(name, UNKNOWN_PRICE_SECONDS))

    def work(self, model: str, lines: int) -> timedelta:
        """Return how long lines of a model take on one slot."""
        return timedelta(seconds=lines / max(self.rates.get(model, UNKNOWN_LINES_PER_SECOND), 1e-3))


def is_urgent(batch: Waiting, slot: Facts, now: datetime) -> bool:
    """Return whether a batch must run now to end inside its window."""
    needs = slot.work(batch.model, batch.lines + batch.held) * URGENT_FACTOR + URGENT_MARGIN
    if batch.model != slot.model:
        needs += slot.price(batch.model)
    return batch.expires_at - now < needs


def rank(batch: Waiting, slot: Facts, now: datetime) -> int:
    """Return the rank of a batch's lines among those in a runner's hands; the least is served first."""
    return _FIRST if is_urgent(batch, slot, now) or now - batch.since >= MAX_WAIT else -batch.priority


def next_batch(waiting: Sequence[Waiting], slot: Facts, now: datetime) -> Waiting | None:
    """Return the batch of the loaded model whose shard is taken next."""
    ready = [batch for batch in waiting if batch.lines and batch.model == slot.model]
    if not ready:
        return None
    held = shares(waiting)
    return min(
        ready,
        key=lambda batch: (
            not is_urgent(batch, slot, now),
            now - batch.since < MAX_WAIT,
            -batch.priority,
            held[batch.project_id],
            batch.created_at,
            batch.batch_id,
        ),
    )


def shares(waiting: Iterable[Waiting]) -> dict[int, float]:
    """Return the lines in workers' hands of each project, by its weight: the least is served next.

    Who has half of the lines in hand gets half of the engine, so that equal shares in hand are equal shares of the
    work, with no account of the past: a project that comes with ten lines has none in hand and goes first.
    """
    held: dict[int, float] = defaultdict(float)
    for batch in waiting:
        held[batch.project_id] += batch.held / batch.weight
    return held


def next_model(waiting: Sequence[Waiting], slot: Facts, now: datetime) -> str | None:
    """Return the model that the slot should have loaded: the present one, another, or None to leave it as it is.

    GIVE_WAY among the live models is one like the others: chosen, it means that the slot is to be emptied.
    """
    by_model: dict[str, list[Waiting]] = defaultdict(list)
    for batch in waiting:
        if batch.lines:
            by_model[batch.model].append(batch)
    rivals = [
        _Claim.of(model, by_model.get(model, []), slot, now)
        for model in by_model.keys() | slot.live.keys()
        if model != slot.model and (model in slot.live or _is_worth_a_slot(model, by_model[model], slot))
    ]
    here = [b for b in waiting if b.model == slot.model and (b.lines or slot.busy)]
    if slot.model is not None and (here or slot.model in slot.live):
        present = _Claim.of(slot.model, here, slot, now)
        rivals = [rival for rival in rivals if _is_worth_a_swap(rival, present, slot, now)]
        if not rivals:
            return slot.model
    return min(rivals).model if rivals else None


@dataclass(frozen=True, slots=True, order=True)
class _Claim:
    """What a model's waiting work has to say for itself; the least goes first."""

    calm: bool  # nothing urgent
    patient: bool  # nothing waited for MAX_WAIT
    rank: int  # minus the highest priority; live requests come before all
    since: datetime
    model: str

    @classmethod
    def of(cls, model: str, batches: Sequence[Waiting], slot: Facts, now: datetime) -> "_Claim":
        since = [batch.since for batch in batches]
        rank = [-batch.priority for batch in batches]
        if model in slot.live:
            since.append(slot.live[model])
            rank.append(_FIRST)
        return cls(
            calm=not any(is_urgent(batch, slot, now) for batch in batches),
            patient=now - min(since) < MAX_WAIT,
            rank=min(rank),
            since=min(since),
            model=model,
        )


def _is_worth_a_slot(model: str, batches: Sequence[Waiting], slot: Facts) -> bool:
    """Return whether this slot should serve a model too that others have loaded."""
    others = slot.elsewhere.get(model, 0)
    if not others:
        return True
    work = slot.work(model, sum(batch.lines for batch in batches))
    return work / (others + 1) > slot.price(model) * WORTH_A_COPY


def _is_worth_a_swap(rival: _Claim, present: _Claim, slot: Facts, now: datetime) -> bool:
    """Return whether work for another model has waited long enough, while there is work for the loaded one."""
    if present.calm and not rival.calm:
        return True
    if rival.model == GIVE_WAY and not present.calm:
        # It might have the slot for longer than the window lasts.
        return False
    price = slot.price(rival.model)
    # One that was ready later than now was so before the clock was set back.
    if timedelta(0) <= now - slot.since < max(MIN_RESIDENCE, price * RESIDENCE_PER_PRICE):
        return False
    if rival.rank < present.rank:
        return True
    back = slot.price(slot.model or "")
    most = LIVE_MAX_WAIT if rival.rank == _FIRST else MAX_WAIT
    return now - rival.since > min(most, max(MIN_WAIT, (price + back) * WAIT_PER_PRICE))
