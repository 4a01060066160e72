"""Work that waits, as the scheduler sees it. Pure: no Django."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Open lines of one batch and one model: those that can be claimed now, and those in workers' hands."""

    batch_id: str
    project_id: int
    model: str
    since: datetime  # when a shard of it was last taken; when it was made if none was
    created_at: datetime
    expires_at: datetime
    lines: int  # that can be claimed now
    held: int = 0  # lines in workers' hands
    priority: int = 0  # -100 to 100; higher goes first
    weight: int = 1  # the project's share
