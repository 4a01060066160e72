"""Results as lines of output and error files: the same bytes in a file and in a stream."""

from batches import wire
from batches.models import Batch, Result
from batches.outcome import Outcome
from vbatch_site.openai import ids


def line_id(batch: Batch, position: int) -> str:
    """Return the id of a line: it follows from the batch and the position, so that a line never changes its id."""
    return ids.derived_id("batch_req", int(batch.created_at.timestamp()), f"{batch.pk}:{position}".encode())


def line_of(batch: Batch, position: int, result: Result | Outcome) -> bytes:
    """Return a result as one line of a file (contract.md 4.1)."""
    name = line_id(batch, position)
    if result.error_code:
        number = None if result.attempts else result.line
        return wire.error_line(name, result.custom_id, result.error_code, result.error_message, number)
    body = wire.one_line(bytes(result.body or b"null"))
    return wire.response_line(name, result.custom_id, result.status_code or 0, result.request_id, body)
