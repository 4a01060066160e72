"""Work that waits, as the scheduler sees it. Pure: no Django."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """Lines of one batch and one model that can be claimed now."""

    batch_id: str
    project_id: int
    model: str
    created_at: datetime
    expires_at: datetime
    lines: int
    priority: int = 0  # -100 to 100; higher goes first
