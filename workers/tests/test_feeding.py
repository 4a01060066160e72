"""How much an engine is fed, which line is next, and which GPUs are whose, without any process."""

import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batches.leases import Lease
from batches.planning import PlannedLine
from workers import canary, devices
from workers.backlog import Backlog
from workers.feeding import FIRST_LIMIT, LEAST_LIMIT, MOST_LIMIT, Feeding, Gauges
from workers.lines import Held, Line

PAGE = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 12.0
vllm:num_requests_running{engine="1",model_name="m"} 8.0
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.7
vllm:num_preemptions_total{engine="0",model_name="m"} 1.0
"""


def test_gauges_are_summed_over_the_ranks_of_an_engine() -> None:
    gauges = Gauges.parse(PAGE)
    assert (gauges.running, gauges.waiting, gauges.preemptions) == (20, 3, 1)
    assert gauges.cache_usage == pytest.approx(0.6)
    with pytest.raises(ValueError, match="no gauges"):
        Gauges.parse("<html>")


class Model:
    """An engine that works on so many lines at once, each for so many seconds."""

    def __init__(self, holds: int, seconds: float) -> None:
        self.holds, self.seconds = holds, seconds
        self.feeding = Feeding()
        self.idle = 0

    def run(self, looks: int) -> None:
        """Keep the engine fed up to the limit, and look once a second."""
        for _ in range(looks):
            given = self.feeding.limit
            running = min(given, self.holds)
            self.idle += self.holds - running
            for _ in range(round(running / self.seconds)):
                self.feeding.finished()
            self.feeding.look(Gauges(running, given - running), given, 1.0)


@pytest.mark.parametrize(("holds", "seconds"), [(4, 5.0), (32, 2.0), (256, 10.0), (1024, 20.0)])
def test_the_limit_settles_a_little_above_what_the_engine_holds(holds: int, seconds: float) -> None:
    model = Model(holds, seconds)
    model.run(30)
    model.idle = 0
    model.run(30)
    assert model.idle == 0
    assert holds < model.feeding.limit <= holds + 8 + 5 * holds / seconds


def test_preemptions_lower_the_limit_and_missing_gauges_leave_it() -> None:
    feeding = Feeding()
    feeding.look(Gauges(100, 10, 0.9, 0), 128, 1.0)
    before = feeding.limit
    feeding.look(Gauges(100, 10, 0.99, 5), 128, 1.0)
    assert feeding.limit < before
    lowered = feeding.limit
    feeding.look(None, 100, 1.0)
    assert feeding.limit == lowered


def test_a_full_cache_stops_growth_and_no_limit_leaves_its_bounds() -> None:
    feeding = Feeding()
    feeding.look(Gauges(128, 0, 0.99), 128, 1.0)
    assert feeding.limit == FIRST_LIMIT
    for _ in range(100):
        feeding.look(Gauges(feeding.limit, 0, 0.1), feeding.limit, 1.0)
    assert feeding.limit == MOST_LIMIT
    for preempted in range(1, 100):
        feeding.look(Gauges(1, 0, 1.0, preempted), feeding.limit, 1.0)
    assert feeding.limit == LEAST_LIMIT


def test_a_fast_engine_that_is_empty_at_every_look_is_given_no_more() -> None:
    feeding = Feeding()
    for _ in range(10):
        for _ in range(2000):
            feeding.finished()
        feeding.look(Gauges(3, 0), FIRST_LIMIT, 1.0)
    assert feeding.limit == FIRST_LIMIT
    assert feeding.ahead > FIRST_LIMIT


def _held(project_id: int, lines: int, rank: int = 0, weight: int = 1) -> list[Line]:
    far = datetime(2100, 1, 1, tzinfo=UTC)
    lease = Lease(project_id, 1, f"b{project_id}", project_id, weight, "m", "", "/v1/completions", "", far, ())
    held = Held(lease, -1, rank)
    return [Line(held, PlannedLine(number, 0, 0)) for number in range(1, lines + 1)]


def test_lines_in_flight_are_shared_by_weight_and_rank_goes_first() -> None:
    backlog = Backlog()
    backlog.add(_held(1, 1000))
    backlog.add(_held(2, 1000, weight=3))
    chance = random.Random(1)
    in_flight: list[Line] = []
    for _ in range(400):
        while len(in_flight) < 40:
            in_flight.append(backlog.next())
        backlog.ended(in_flight.pop(chance.randrange(len(in_flight))))
    shares = Counter(line.held.lease.project_id for line in in_flight)
    assert shares[2] == pytest.approx(30, abs=2)
    urgent = _held(3, 2, rank=-1000)
    backlog.add(urgent)
    assert [backlog.next(), backlog.next()] == urgent


def test_a_shard_that_is_given_back_leaves_nothing_behind() -> None:
    backlog = Backlog()
    first, second = _held(1, 10), _held(2, 5)
    backlog.add(first)
    backlog.add(second)
    assert backlog.lacks(0, 3)
    assert not backlog.lacks(0, 1)
    assert backlog.lacks(-1, 1)
    backlog.remove(first[0].held)
    assert len(backlog) == 5
    assert {backlog.next().held for _ in range(5)} == {second[0].held}
    with pytest.raises(IndexError):
        backlog.next()


def test_the_gpus_of_a_host_are_dealt_out_whole_and_once() -> None:
    for count in range(9):
        gpus = [str(i) for i in range(count)]
        for slots in range(1, 5):
            assert [gpu for i in range(slots) for gpu in devices.part(gpus, slots, i)] == gpus
    assert devices.part(["0", "1", "2", "3"], 2, 1) == ["2", "3"]


def test_a_slot_is_owned_once_and_free_again_after_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    first, second = devices.SlotLock(tmp_path, 2, "first"), devices.SlotLock(tmp_path, 2, "second")
    assert [lock.environment()["CUDA_VISIBLE_DEVICES"] for lock in (first, second)] == ["4", "5"]
    with pytest.raises(devices.NoSlotError):
        devices.SlotLock(tmp_path, 2, "third")
    first.give_back()
    assert devices.SlotLock(tmp_path, 2, "third").index == 0


def test_a_canary_tells_another_text_from_another_moment() -> None:
    answer = b'{"id":"1","created":1,"choices":[{"message":{"content":"one two"}}],"usage":{"total_tokens":9}}'
    later = answer.replace(b'"1"', b'"2"').replace(b'"created":1', b'"created":7')
    assert canary.same(answer, later)
    assert not canary.same(answer, later.replace(b"two", b"too"))
    assert not canary.same(answer, b"garbage")
    assert canary.same(b'{"data":[{"embedding":[0.5,1]}]}', b'{"data":[{"embedding":[0.5001,1.0]}]}')
    assert not canary.same(b'{"data":[{"embedding":[0.5,1]}]}', b'{"data":[{"embedding":[0.7,1.0]}]}')
    assert canary.request(["/v1/responses"], "m") is None
