"""The states of a batch and of a shard. Pure: no Django.

validating ──> in_progress ──> finalizing ──> completed
    │               │              └────────> expired      (its window passed with lines left)
    │               └──> cancelling ─────────> cancelled
    ├──> cancelling                              ^ both keep what was finished
    ├──> failed                                    (the input did not validate, and nothing else)
    └──> expired

pending ──> leased ──> done
   ^           │
   └───────────┴──> closed                         (the batch ended before the shard did)
"""

from enum import StrEnum


class BatchStatus(StrEnum):
    """OpenAI's eight states (contract.md 2.4)."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


SOURCES: dict[BatchStatus, frozenset[BatchStatus]] = {
    BatchStatus.VALIDATING: frozenset(),
    BatchStatus.FAILED: frozenset({BatchStatus.VALIDATING}),
    BatchStatus.IN_PROGRESS: frozenset({BatchStatus.VALIDATING}),
    BatchStatus.FINALIZING: frozenset({BatchStatus.IN_PROGRESS}),
    BatchStatus.COMPLETED: frozenset({BatchStatus.FINALIZING}),
    BatchStatus.EXPIRED: frozenset({BatchStatus.VALIDATING, BatchStatus.FINALIZING}),
    BatchStatus.CANCELLING: frozenset({BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS}),
    BatchStatus.CANCELLED: frozenset({BatchStatus.CANCELLING}),
}

TERMINAL = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})
ACTIVE = frozenset(BatchStatus) - TERMINAL

# States in which there is something left to steer: a pause, a priority.
STEERABLE = frozenset({BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS})

# The states that a task has to carry on; a batch that stays in one too long gets its doorbell rung again.
WAITS_FOR_TASK = frozenset({BatchStatus.VALIDATING, BatchStatus.FINALIZING, BatchStatus.CANCELLING})

COLOURS: dict[BatchStatus, str] = {
    BatchStatus.VALIDATING: "info",
    BatchStatus.FAILED: "danger",
    BatchStatus.IN_PROGRESS: "info",
    BatchStatus.FINALIZING: "info",
    BatchStatus.COMPLETED: "success",
    BatchStatus.EXPIRED: "warning",
    BatchStatus.CANCELLING: "warning",
    BatchStatus.CANCELLED: "warning",
}


class EventKind(StrEnum):
    """What a line of a batch's journal is about: its state, or something a person asked for."""

    STATUS = "status"
    PAUSE = "pause"
    RESUME = "resume"
    PRIORITY = "priority"
    RETRY = "retry"


class ShardState(StrEnum):
    """Where a shard is."""

    PENDING = "pending"
    LEASED = "leased"
    DONE = "done"
    CLOSED = "closed"


OPEN_SHARDS = frozenset({ShardState.PENDING, ShardState.LEASED})


def timestamp_field(status: BatchStatus) -> str:
    """Return the name of the batch's field that says when it entered the state."""
    return f"{status.value}_at"
