"""How many services there are for the work that waits."""

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from workers.autoscale import LEAD, MAX_WAIT, Demand, Limits, Running, plan

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Limits(least=0, most=4, idle=timedelta(seconds=60), lines=100)


def _ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def _work(model: str, lines: int, age: float = 1) -> Demand:
    return Demand(model=model, lines=lines, since=_ago(age))


def _service(number: int, model: str, age: float = 1000, idle: float = 0, **more: Any) -> Running:
    return Running(id=number, model=model, since=_ago(age), used_at=_ago(idle), **more)


def test_a_model_that_nobody_serves_gets_a_service_and_another_when_the_queue_grows() -> None:
    assert plan([_work("a", 1)], [], LIMITS, NOW).starts == ("a",)
    assert plan([_work("a", 100)], [_service(1, "a")], LIMITS, NOW).starts == ()
    assert plan([_work("a", 301)], [_service(1, "a")], LIMITS, NOW).starts == ("a", "a", "a")
    assert plan([_work("a", 10_000)], [_service(1, "a")], LIMITS, NOW).starts == ("a", "a", "a")


def test_every_model_gets_one_before_one_gets_more() -> None:
    demands = [_work("a", 10_000, age=9), _work("b", 1, age=5), _work("c", 1, age=7)]
    assert plan(demands, [], LIMITS, NOW).starts == ("a", "c", "b", "a")


def test_an_idle_service_is_stopped_but_not_below_the_minimum() -> None:
    services = [_service(1, "a", idle=61), _service(2, "a", idle=59), _service(3, "b", idle=100)]
    assert plan([], services, LIMITS, NOW).stops == (3, 1)
    least = Limits(least=2, most=4, idle=LIMITS.idle, lines=100)
    assert plan([], services, least, NOW).stops == (3,)
    assert plan([_work("b", 1)], services, LIMITS, NOW).stops == (1,)


def test_a_model_without_a_place_takes_that_of_an_idle_one_at_once_and_of_a_busy_one_in_time() -> None:
    idle = [_service(1, "a", idle=1), _service(2, "b"), _service(3, "b"), _service(4, "b")]
    busy = [_work("b", 1000, age=900)]
    taken = plan([*busy, _work("c", 1)], idle, LIMITS, NOW)
    assert (taken.starts, taken.stops) == (("c",), (1,))
    full = [_service(number, "b", age=number) for number in (400, 500, 600, 700)]
    assert plan([*busy, _work("c", 1)], full, LIMITS, NOW).stops == ()
    late = plan([*busy, _work("c", 1, age=MAX_WAIT.total_seconds() + 1)], full, LIMITS, NOW)
    assert (late.starts, late.stops) == (("c",), (700,))


def test_a_successor_is_asked_for_before_a_time_limit_ends_a_service() -> None:
    ending = _service(1, "a", ends_at=NOW + LEAD)
    assert plan([_work("a", 1)], [ending], LIMITS, NOW).starts == ("a",)
    lasting = _service(1, "a", ends_at=NOW + LEAD + timedelta(seconds=1))
    assert plan([_work("a", 1)], [lasting], LIMITS, NOW).starts == ()


_models = st.sampled_from("abc")
_demands = st.lists(
    st.builds(_work, _models, st.integers(1, 1000), st.floats(0, 1000)), max_size=3, unique_by=lambda found: found.model
)
_services = st.lists(
    st.builds(_service, st.integers(1, 99), _models, st.floats(0, 1000), st.floats(0, 1000)),
    max_size=5,
    unique_by=lambda found: found.id,
)


@given(_demands, _services)
def test_the_limit_is_kept_and_only_what_has_work_is_started(demands: list[Demand], services: list[Running]) -> None:
    found = plan(demands, services, LIMITS, NOW)
    left = len(services) - len(found.stops) + len(found.starts)
    assert left <= max(LIMITS.most, len(services))
    assert set(found.starts) <= {demand.model for demand in demands}
