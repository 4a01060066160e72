"""Who runs next, asked of the pure scheduler with rows made by hand, and with thousands of random arrivals."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from batches.demand import Waiting
from batches.planning import SHARD_LINES
from workers.scheduler import (
    GIVE_WAY,
    LIVE_MAX_WAIT,
    MAX_WAIT,
    MIN_RESIDENCE,
    RESIDENCE_PER_PRICE,
    Facts,
    next_batch,
    next_model,
    rank,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
PRICES = {"a": 30.0, "b": 30.0, "c": 30.0}


def at(seconds: float) -> datetime:
    """Return a time of the simulation."""
    return START + timedelta(seconds=seconds)


def waiting(batch_id: str, model: str = "a", **changes: object) -> Waiting:
    """Return a batch that has waited since the start."""
    fields: dict[str, object] = {
        "batch_id": batch_id,
        "project_id": 1,
        "model": model,
        "since": START,
        "created_at": START,
        "expires_at": START + DAY,
        "lines": 1000,
    }
    return Waiting(**{**fields, **changes})  # type: ignore[arg-type]


def facts(model: str | None = "a", since: float = 0.0, **changes: object) -> Facts:
    """Return a slot with a model loaded."""
    fields: dict[str, object] = {"prices": PRICES, "rates": dict.fromkeys(PRICES, 10.0)}
    return Facts(model=model, since=at(since), **{**fields, **changes})  # type: ignore[arg-type]


def chosen(*batches: Waiting, slot: Facts | None = None, now: float = 60) -> str | None:
    """Return the batch whose shard is taken next."""
    found = next_batch(batches, slot or facts(), at(now))
    return found.batch_id if found else None


class TestNextBatch:
    """Of the loaded model."""

    def test_the_older_of_equals_goes_first(self) -> None:
        assert chosen(waiting("new", created_at=at(5)), waiting("old")) == "old"

    def test_a_higher_priority_goes_before_an_older_batch(self) -> None:
        assert chosen(waiting("old"), waiting("new", created_at=at(5), priority=1)) == "new"

    def test_the_project_with_less_in_hand_for_its_weight_goes_first(self) -> None:
        big, small = waiting("big", held=256), waiting("small", project_id=2, created_at=at(5))
        assert chosen(big, small) == "small"
        heavy = waiting("heavy", project_id=3, held=256, weight=4, created_at=at(9))
        assert chosen(big, heavy) == "heavy"

    def test_what_would_miss_its_window_goes_before_all(self) -> None:
        late = waiting("late", priority=-100, created_at=at(5), expires_at=at(60 + 120))
        assert chosen(waiting("first", priority=100), late) == "late"

    def test_a_lower_priority_gets_a_turn_after_the_maximum_wait(self) -> None:
        now = MAX_WAIT.total_seconds() + 1
        poor, rich = waiting("poor", priority=-100), waiting("rich", priority=100, since=at(now - 1))
        assert chosen(poor, rich, now=now - 2) == "rich"
        assert chosen(poor, rich, now=now) == "poor"
        assert rank(poor, facts(), at(now)) < rank(rich, facts(), at(now))

    def test_other_models_and_shards_in_other_hands_are_not_taken(self) -> None:
        assert chosen(waiting("other", "b"), waiting("held", lines=0, held=256)) is None


class TestNextModel:
    """Which model a slot should have."""

    def test_an_empty_slot_loads_what_waited_longest(self) -> None:
        batches = [waiting("new", "a", since=at(9)), waiting("old", "b")]
        assert next_model(batches, facts(None), at(20)) == "b"

    def test_the_loaded_model_stays_while_it_has_work(self) -> None:
        batches = [waiting("other", "b"), waiting("own", "a", since=at(50))]
        assert next_model(batches, facts(), at(60)) == "a"
        in_hand = [waiting("other", "b"), waiting("own", "a", lines=0, held=100)]
        assert next_model(in_hand, facts(busy=True), at(60)) == "a"

    def test_a_model_without_work_gives_way_at_once(self) -> None:
        assert next_model([waiting("other", "b")], facts(), at(1)) == "b"

    def test_nothing_waits_longer_than_the_maximum_for_a_swap(self) -> None:
        batches = [waiting("other", "b"), waiting("own", "a")]
        dear = {"a": 300.0, "b": 100.0}
        assert next_model(batches, facts(prices=dear), at(MAX_WAIT.total_seconds() - 1)) == "a"
        assert next_model(batches, facts(prices=dear), at(MAX_WAIT.total_seconds() + 1)) == "b"

    def test_a_model_that_was_just_loaded_is_kept_for_a_multiple_of_its_price(self) -> None:
        now = 1000.0
        batches = [waiting("other", "b"), waiting("own", "a")]
        assert next_model(batches, facts(since=now - 2 * 30 + 1), at(now)) == "a"
        assert next_model(batches, facts(since=now - 2 * 30 - 1), at(now)) == "b"

    def test_a_cheap_swap_is_made_sooner_than_a_dear_one(self) -> None:
        batches = [waiting("other", "b"), waiting("own", "a")]
        assert next_model(batches, facts(prices={"a": 2.0, "b": 2.0}), at(30)) == "b"
        assert next_model(batches, facts(), at(30)) == "a"

    def test_a_higher_priority_swaps_as_soon_as_the_loaded_model_has_paid_for_itself(self) -> None:
        batches = [waiting("own", "a"), waiting("other", "b", since=at(60), priority=10)]
        assert next_model(batches, facts(), at(61)) == "b"

    def test_a_deadline_swaps_at_once(self) -> None:
        batches = [waiting("own", "a"), waiting("other", "b", expires_at=at(200))]
        assert next_model(batches, facts(), at(1)) == "b"

    def test_what_another_slot_serves_is_left_to_it_unless_there_is_much(self) -> None:
        slot = facts(None, elsewhere={"a": 1})
        assert next_model([waiting("small", "a", lines=100)], slot, at(1)) is None
        assert next_model([waiting("large", "a", lines=50_000)], slot, at(1)) == "a"

    def test_a_live_request_gets_a_free_slot_and_does_not_break_off_a_young_one(self) -> None:
        assert next_model([], facts(live={"b": at(1)}), at(2)) == "b"
        batches = [waiting("own", "a")]
        assert next_model(batches, facts(live={"b": at(1)}), at(2)) == "a"
        assert next_model(batches, facts(live={"b": at(100)}), at(101)) == "b"

    def test_people_who_use_a_model_let_others_have_theirs_in_time(self) -> None:
        used = {"a": at(0), "b": at(100)}
        assert next_model([], facts(live=used), at(100 + LIVE_MAX_WAIT.total_seconds() - 1)) == "a"
        assert next_model([], facts(live=used), at(100 + LIVE_MAX_WAIT.total_seconds() + 1)) == "b"
        # Not before the loaded one was worth its load.
        assert next_model([], facts(live=used, since=100), at(100 + RESIDENCE_PER_PRICE * 30 - 1)) == "a"

    def test_two_models_in_steady_use_take_turns(self) -> None:
        loaded, since, swaps, longest, now = "a", 0.0, 0, 0.0, 0.0
        asked = {"b": 0.0}
        while now < 3600:
            used = {loaded: at(since)} | {model: at(begin) for model, begin in asked.items()}
            model = next_model([], facts(loaded, since, live=used), at(now))
            assert model is not None
            if model != loaded:
                swaps, now = swaps + 1, now + PRICES[model]
                longest = max(longest, now - asked.pop(model))
                asked[loaded] = now - PRICES[model]
                loaded, since = model, now
            now += 0.5
        assert longest <= 120
        assert swaps <= 3600 / (30 + RESIDENCE_PER_PRICE * 30)

    def test_a_slot_gives_way_to_a_service_when_it_is_idle_or_its_model_had_its_time(self) -> None:
        asked = {GIVE_WAY: at(0)}
        assert next_model([], facts(live=asked), at(1)) == GIVE_WAY
        assert next_model([waiting("other", "b")], facts(None, live=asked), at(1)) == GIVE_WAY
        own = [waiting("own", "a")]
        assert next_model(own, facts(live=asked), at(RESIDENCE_PER_PRICE * 30 - 1)) == "a"
        assert next_model(own, facts(live=asked), at(RESIDENCE_PER_PRICE * 30 + 1)) == GIVE_WAY
        used = facts(live={**asked, "a": at(0)})
        assert next_model([], used, at(LIVE_MAX_WAIT.total_seconds() - 1)) == "a"
        assert next_model([], used, at(LIVE_MAX_WAIT.total_seconds() + 1)) == GIVE_WAY

    def test_a_batch_that_would_miss_its_window_keeps_its_slot_from_a_service(self) -> None:
        urgent = waiting("own", "a", expires_at=at(400))
        for slot in (facts(live={GIVE_WAY: at(0)}), facts(None, live={GIVE_WAY: at(0)})):
            assert next_model([urgent], slot, at(300)) == "a"


@dataclass(eq=False)
class Job:
    """A batch of the simulation."""

    name: str
    model: str
    project: int
    arrives: float
    lines: int
    priority: int = 0
    left: int = 0
    served: float | None = None
    ended: float = 0.0
    longest_wait: float = 0.0

    def __post_init__(self) -> None:
        self.left = self.lines


@dataclass
class Simulation:
    """One slot that works through jobs, in steps of a quarter of a second."""

    jobs: Sequence[Job]
    prices: dict[str, float] = field(default_factory=lambda: dict(PRICES))
    rate: float = 50.0  # lines a second
    swaps: int = 0
    loaded: str | None = None
    since: float = 0.0
    now: float = 0.0

    def run(self) -> None:
        """Work until everything is done."""
        coming = sorted(self.jobs, key=lambda job: job.arrives)
        open_jobs: list[Job] = []
        hand: dict[Job, int] = {}
        while coming or open_jobs:
            while coming and coming[0].arrives <= self.now:
                open_jobs.append(coming.pop(0))
            if not open_jobs:
                self.now = coming[0].arrives
                continue
            model = next_model(self._rows(open_jobs, hand), self._facts(bool(hand)), at(self.now))
            assert model is not None, "work waits and the slot is left idle"
            if model != self.loaded:
                hand.clear()  # given back
                self.swaps += 1
                self.now += self.prices[model]
                self.loaded, self.since = model, self.now
                continue
            self._claim(open_jobs, hand)
            self._work(hand)
            for job in [job for job in open_jobs if job.left <= 0]:
                job.ended = self.now
                open_jobs.remove(job)

    def _facts(self, busy: bool) -> Facts:
        return facts(self.loaded, self.since, prices=self.prices, busy=busy, rates=dict.fromkeys(PRICES, self.rate))

    def _rows(self, jobs: Iterable[Job], hand: dict[Job, int]) -> list[Waiting]:
        return [
            waiting(
                job.name,
                job.model,
                project_id=job.project,
                created_at=at(job.arrives),
                since=at(job.arrives if job.served is None else job.served),
                expires_at=at(job.arrives) + DAY,
                lines=job.left - hand.get(job, 0),
                held=hand.get(job, 0),
                priority=job.priority,
            )
            for job in jobs
        ]

    def _claim(self, jobs: Iterable[Job], hand: dict[Job, int]) -> None:
        """Take shards as the runner does: enough in hand, and one for each project."""
        by_name = {job.name: job for job in jobs}
        while True:
            batch = next_batch(self._rows(jobs, hand), self._facts(bool(hand)), at(self.now))
            if batch is None:
                return
            if sum(hand.values()) >= SHARD_LINES and batch.project_id in {job.project for job in hand}:
                return
            job = by_name[batch.batch_id]
            hand[job] = hand.get(job, 0) + min(SHARD_LINES, batch.lines)
            last = job.arrives if job.served is None else job.served
            job.longest_wait = max(job.longest_wait, self.now - last)
            job.served = self.now

    def _work(self, hand: dict[Job, int]) -> None:
        """Run for a quarter of a second, in equal shares of the projects."""
        share = Counter(job.project for job in hand)
        for job in list(hand):
            part = self.rate * 0.25 / len(share) / share[job.project]
            done = min(hand[job], max(1, round(part)))
            hand[job] -= done
            job.left -= done
            if not hand[job]:
                del hand[job]
        self.now += 0.25


@pytest.mark.parametrize("seed", range(2))
def test_of_thousands_of_random_arrivals_none_starves(seed: int) -> None:
    chance = random.Random(seed)
    clock, jobs = 0.0, []
    for i in range(800):
        clock += chance.expovariate(1 / 12)
        jobs.append(
            Job(
                f"j{i}",
                chance.choices("abc", weights=[6, 3, 1])[0],
                project=chance.randint(1, 5),
                arrives=clock,
                lines=min(5000, int(chance.paretovariate(1.1) * 60)),
                priority=chance.choice([0, 0, 0, 10, -10]),
            )
        )
    simulation = Simulation(jobs)
    simulation.run()
    assert all(job.left <= 0 for job in jobs)
    # Its own wait, and then the swaps and the shortest stays of the other two models.
    stay = max(MIN_RESIDENCE.total_seconds(), RESIDENCE_PER_PRICE * 30.0)
    most = MAX_WAIT.total_seconds() + 2 * (30.0 + stay) + 30.0
    assert max(job.longest_wait for job in jobs) <= most
    # Swaps take no more of the slot than leaves time for the work: nothing piles up.
    assert simulation.now < clock + most


def _fewest_swaps(jobs: Sequence[Job], rate: float, price: float, most_wait: float) -> int:
    """Return the swaps of the best schedule that knows all arrivals, never idles and starts all in time."""
    best = len(jobs) + 1

    def go(left: frozenset[int], now: float, loaded: str | None, swaps: int) -> None:
        nonlocal best
        if swaps >= best:
            return
        if not left:
            best = swaps
            return
        here = [i for i in left if jobs[i].arrives <= now]
        if not here:
            now = min(jobs[i].arrives for i in left)
            here = [i for i in left if jobs[i].arrives <= now]
        # Of one model the oldest first: another order saves no swap.
        firsts = {jobs[i].model: i for i in sorted(here, key=lambda i: -jobs[i].arrives)}
        for model, i in sorted(firsts.items(), key=lambda item: item[0] != loaded):
            start = now + (price if model != loaded else 0.0)
            if start - jobs[i].arrives <= most_wait:
                go(left - {i}, start + jobs[i].lines / rate, model, swaps + (model != loaded))

    go(frozenset(range(len(jobs))), 0.0, None, 0)
    return best


def test_swaps_are_within_a_tenth_of_the_best_schedule_that_knows_the_future() -> None:
    chance = random.Random(7)
    made = fewest = 0
    for _ in range(25):
        mix = [*"abaac", *chance.choices("abc", k=5)]
        clock, jobs = 0.0, []
        for i, model in enumerate(mix):
            clock += chance.uniform(0, 20)
            jobs.append(Job(f"j{i}", model, project=1, arrives=clock, lines=chance.randint(200, 2500)))
        simulation = Simulation(jobs)
        simulation.run()
        best = _fewest_swaps(jobs, simulation.rate, 30.0, MAX_WAIT.total_seconds() + 90.0)
        assert best <= len(mix)
        made += simulation.swaps
        fewest += best
    assert made <= 1.10 * fewest, (made, fewest)


def test_with_all_work_at_hand_each_model_is_loaded_once() -> None:
    for mix in sorted(set(permutations("abaac"))):
        simulation = Simulation([Job(f"j{i}", m, 1, arrives=i * 0.01, lines=500) for i, m in enumerate(mix)])
        simulation.run()
        assert simulation.swaps == 3


def test_ten_lines_do_not_wait_for_another_project_s_fifty_thousand() -> None:
    big = Job("big", "a", project=1, arrives=0.0, lines=50_000)
    small = [Job(f"s{i}", "a", project=2, arrives=30.0 + 60.0 * i, lines=10) for i in range(10)]
    Simulation([big, *small]).run()
    assert max(job.ended - job.arrives for job in small) < 0.02 * (big.ended - big.arrives)
