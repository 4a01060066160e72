"""The plan: what shares a prefix runs together, what is long runs first, what repeats is computed once."""

import random
import time
import tracemalloc
from itertools import groupby

from batches.planning import (
    LARGEST_SHARD_LINES,
    LEAST_SHARD_LINES,
    SHARD_LINES,
    TAIL_PARTS,
    Plan,
    PlannedLine,
    by_answer,
    in_file_order,
    unpack,
)
from vbatch_site.tests.speed import slowness


def _plan(prompts: list[str], generates: list[int] | None = None, answers: list[bytes | None] | None = None) -> Plan:
    plan = Plan()
    for i, prompt in enumerate(prompts):
        same = answers[i] if answers else None
        plan.add(PlannedLine(i + 1, i * 100, 99), prompt.encode(), generates[i] if generates else 16, same)
    return plan


def _runs(plan: Plan) -> list[PlannedLine]:
    return [line for shard in plan.shards("m") for line in unpack(shard.packed)]


def test_every_line_is_planned_once_with_its_place() -> None:
    plan = _plan([str(random.random()) for _ in range(1000)])
    lines = in_file_order(shard.packed for shard in plan.shards("m"))
    assert lines == [PlannedLine(i + 1, i * 100, 99) for i in range(1000)]


def test_lines_of_one_document_are_neighbours_however_they_were_shuffled() -> None:
    documents = {d: f"document {d} " + "text " * 200 for d in range(20)}
    asked = [(d, q) for d in documents for q in range(10)]
    random.Random(1).shuffle(asked)
    runs = _runs(_plan([documents[d] + f"question {q}" for d, q in asked]))
    order = [asked[line.number - 1][0] for line in runs]
    assert len([d for d, _ in groupby(order)]) == 20


def test_nested_headers_are_walked_as_a_tree() -> None:
    asked = [(a, b, c) for a in range(4) for b in range(4) for c in range(4)]
    random.Random(2).shuffle(asked)
    prompts = [f"{a}" * 600 + f"{b}" * 600 + f"{c}" * 600 + f"question {i}" for i, (a, b, c) in enumerate(asked)]
    order = [asked[line.number - 1] for line in _runs(_plan(prompts))]
    for depth in (1, 2, 3):
        assert len([key for key, _ in groupby(order, key=lambda path: path[:depth])]) == 4**depth


def test_long_generations_start_first() -> None:
    generates = [16] * 98 + [320, 320]
    order = [line.number for line in _runs(_plan([f"prompt {i}" for i in range(100)], generates))]
    assert set(order[:2]) == {99, 100}


def test_repeats_follow_the_line_whose_answer_they_share() -> None:
    answers = [b"a", b"b", b"a", None, b"a", None]
    runs = _runs(_plan([f"p{i % 2}" for i in range(6)], answers=answers))
    groups = {tuple(line.number for line in group) for group in by_answer(runs)}
    assert groups == {(1, 3, 5), (2,), (4,), (6,)}


def test_a_file_of_one_request_is_still_cut_into_shards() -> None:
    plan = _plan(["same"] * 10_000, answers=[b"x"] * 10_000)
    counts = [shard.count for shard in plan.shards("m")]
    assert sum(counts) == 10_000
    assert max(counts) <= LARGEST_SHARD_LINES
    # Each shard computes the answer once, because its lines may be in another worker's hands.
    assert [len(by_answer(unpack(shard.packed))) for shard in plan.shards("m")] == [1, 1, 1]


def test_shards_become_small_towards_the_end_so_that_workers_who_share_a_batch_end_together() -> None:
    counts = [shard.count for shard in _plan([f"prompt {i}" for i in range(2_000)]).shards("m")]
    assert sum(counts) == 2_000
    assert counts[0] == SHARD_LINES
    for index, count in enumerate(counts):
        left = sum(counts[index:])
        assert count <= max(LEAST_SHARD_LINES, left / TAIL_PARTS)
    assert min(counts[:-1]) == LEAST_SHARD_LINES


def _shared_heads(count: int) -> Plan:
    chance = random.Random(3)
    heads = ["".join(chance.choices("abcdefgh ", k=3000)) for _ in range(50)]
    plan = Plan()
    for i in range(count):
        plan.add(PlannedLine(i + 1, i, 1), (chance.choice(heads) + f"{i}" * 100).encode(), 16)
    return plan


def test_planning_fifty_thousand_lines_takes_seconds() -> None:
    started = time.thread_time()
    assert sum(shard.count for shard in _shared_heads(50_000).shards("m")) == 50_000
    assert time.thread_time() - started < 10 * slowness()


def test_a_plan_keeps_a_few_hundred_bytes_a_line() -> None:
    tracemalloc.start()
    plan = _shared_heads(5000)
    sum(shard.count for shard in plan.shards("m"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak / 5000 < 1000
