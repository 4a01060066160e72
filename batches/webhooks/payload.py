"""The body of an event, in both dialects at once. Pure: no Django."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec


class EventType(StrEnum):
    """What can be subscribed to: OpenAI's four events of a batch, and ours."""

    COMPLETED = "batch.completed"
    FAILED = "batch.failed"
    EXPIRED = "batch.expired"
    CANCELLED = "batch.cancelled"
    # SDKs don't know it, so nobody gets it who did not ask for it.
    PROGRESS = "batch.progress"


EVENT_TYPES = [kind.value for kind in EventType]
DEFAULT_EVENTS = [kind.value for kind in EventType if kind != EventType.PROGRESS]

PROGRESS_STEPS = (25, 50, 75)  # percent of the lines that have a result


def step_reached(before: int, after: int, total: int) -> int | None:
    """Return the highest step that lies between two counts of finished lines, None when there is none."""
    reached = [step for step in PROGRESS_STEPS if before * 100 < step * total <= after * 100]
    # A batch that is done at once tells so itself.
    return reached[-1] if reached and after < total else None


def body(event_id: str, kind: str, at: int, batch: Mapping[str, Any], **more: Any) -> bytes:
    """Return the JSON of an event that befell the batch, given as its object, at the unix time `at`."""
    return msgspec.json.encode(
        {
            "object": "event",
            "id": event_id,
            "type": kind,
            "created_at": at,
            "data": {"id": batch["id"]},
            "event": kind,
            "batch_id": batch["id"],
            **{key: batch[key] for key in _OF_THE_BATCH},
            **more,
        }
    )


_OF_THE_BATCH = ("status", "output_file_id", "error_file_id", "request_counts", "metadata")
