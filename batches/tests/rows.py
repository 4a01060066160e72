"""Rows for tests that need no server."""

from datetime import timedelta
from typing import Any

from batches.models import Batch, Shard
from batches.planning import Plan, PlannedLine
from files.models import File, Purpose
from vbatch_site.models import Project

MODEL = "m"


def new_batch(lines: int = 6, shard_lines: int = 3, project: Project | None = None, **fields: Any) -> Batch:
    """Return a batch in `validating` that has its shards already."""
    project = project or Project.default()
    file = File.objects.create(project=project, purpose=Purpose.BATCH, filename="f", bytes=1, path="p")
    batch = Batch.begin(
        window=timedelta(hours=24),
        project=project,
        endpoint="/v1/chat/completions",
        input_file_id=file.pk,
        completion_window="24h",
        **fields,
    )
    plan = Plan()
    for number in range(1, lines + 1):
        plan.add(PlannedLine(number, number * 10, 9))
    for index, shard in enumerate(plan.shards(MODEL, shard_lines)):
        Shard.objects.create(batch=batch, index=index, model=MODEL, lines=shard.packed, count=shard.count)
    return batch
