"""Lines in a runner's hands: from a lease to a result."""

import asyncio
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from batches.leases import Lease
from batches.outcome import Outcome
from batches.planning import PlannedLine
from batches.validation import RequestLine, parse_line
from batches.wire import NotAnAnswer, Usage, read_usage
from files import storage
from workers import priority
from workers.client import Reply
from workers.failures import Failure
from workers.priority import with_priority

# What reading a line raises whose bytes are not those that were validated.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(eq=False, slots=True)
class Held:
    """A lease in hand, and the input file it reads from."""

    lease: Lease
    descriptor: int
    rank: int = 0  # the least is served first
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    uncommitted: int = 0
    dropped: bool = False
    closing: bool = False  # what is not started goes back; released when nothing of it is in flight
    paused_since: float = 0.0  # when its batch was seen paused; what is in flight may finish for a while

    @classmethod
    def take(cls, lease: Lease, rank: int) -> "Held":
        """Open the lease's input file."""
        return cls(lease, storage.local_descriptor(lease.input_path, again=True), rank, uncommitted=len(lease.lines))

    def close(self) -> None:
        """Close the input file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(eq=False, slots=True)
class Line:
    """One line on its way."""

    held: Held
    place: PlannedLine
    repeats: Sequence[PlannedLine] = ()
    attempts: int = 0
    custom_id: str = ""

    def read(self) -> bytes:
        """Return the request's body as the user wrote it, with its priority, and the batch's model if it names none.

        Raises one of UNREADABLE when the file is not what was validated, and OSError when it can't be read.
        """
        line = self._parse(self.place)
        self.custom_id = line.custom_id
        body = bytes(line.body)
        if self.held.lease.default_model:
            body = fill_model(body, self.held.lease.default_model)
        return with_priority(body, priority.BATCH)

    def outcome(self, reply: Reply, usage: Usage, milliseconds: int) -> Outcome:
        """Return what is kept of a line that is not tried again."""
        found = Outcome(
            self.held.lease.batch_id,
            self.place.number,
            self.custom_id,
            input_tokens=usage.input_tokens,
            cached_tokens=usage.cached_tokens,
            output_tokens=usage.output_tokens,
            reasoning_tokens=usage.reasoning_tokens,
            milliseconds=milliseconds,
            attempts=self.attempts,
        )
        if reply.status:
            body = reply.body if reply.failure is None else envelope(reply.body)
            return found._replace(status_code=reply.status, request_id=os.urandom(16).hex(), body=body)
        if reply.failure is not None:
            return found._replace(error_code=reply.failure.code, error_message=reply.failure.message)
        return found

    def outcomes(self, reply: Reply, usage: Usage, milliseconds: int) -> list[Outcome]:
        """Return the outcome of this line and of those that share its answer, each under its own ids.

        Raises OSError when the file can't be read for their ids.
        """
        first = self.outcome(reply, usage, milliseconds)
        found = [first]
        for place in self.repeats:
            try:
                custom_id = self._parse(place).custom_id
            except UNREADABLE:
                failure = Failure.LINE_UNREADABLE
                found.append(
                    Outcome(first.batch_id, place.number, "", error_code=failure.code, error_message=failure.message)
                )
                continue
            request_id = os.urandom(16).hex() if first.request_id else ""
            found.append(first._replace(line=place.number, custom_id=custom_id, request_id=request_id))
        return found

    def _parse(self, place: PlannedLine) -> RequestLine:
        return parse_line(os.pread(self.held.descriptor, place.length, place.offset))


_fields = msgspec.json.Decoder(dict[str, msgspec.Raw])


def fill_model(body: bytes, model: str) -> bytes:
    """Return the body with a model if it names none; the rest stays as it was written."""
    fields = _fields.decode(body)
    if bytes(fields.get("model", b"null")) not in (b"null", b'""'):
        return body
    inner = body.strip()[1:]
    comma = b"" if inner.lstrip().startswith(b"}") else b","
    # A later key wins: a null model in the body would undo ours, so such a body is written anew.
    if "model" in fields:
        return msgspec.json.encode({**fields, "model": model})
    return b'{"model":' + msgspec.json.encode(model) + comma + inner


# vLLM 0.32's sentences on a prompt, or a prompt with its answer, that is longer than the model's context.
_TOO_LONG = re.compile(
    r"^This model's maximum context length is \d"
    r"|^Input length \(\d+\) exceeds model's maximum context length"
    r"|prompt \(length \d+\) (plus the number of requested output tokens \(at least 1\) )?"
    r"is longer than the maximum model length"
    r"|^max_\w+=\d+ cannot be greater than max_(model_len|total_tokens)="
)


class _Refusal(msgspec.Struct):
    message: str = ""
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _Refused(msgspec.Struct):
    error: _Refusal | None = None


def envelope(body: bytes) -> bytes:
    """Return an engine's refusal in OpenAI's four keys (contract.md 4.1), whatever form the engine gave it."""
    try:
        found = msgspec.json.decode(body, type=_Refused, strict=False).error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = None
    if found is None:
        found = _Refusal(message=body[:500].decode(errors="replace"), type="server_error")
    code = found.code if isinstance(found.code, str) else None
    if _TOO_LONG.search(found.message):
        code = "context_length_exceeded"
    kind = found.type or "invalid_request_error"
    # vLLM names its own exception types, which OpenAI's clients do not know.
    kind = {"BadRequestError": "invalid_request_error", "NotFoundError": "invalid_request_error"}.get(kind, kind)
    return msgspec.json.encode({"error": {"message": found.message, "type": kind, "param": found.param, "code": code}})


def checked(reply: Reply) -> tuple[Reply, Usage]:
    """Return the reply with its tokens; a 200 that is not an answer becomes the failure it is."""
    if reply.failure is not None:
        return reply, Usage()
    try:
        return reply, read_usage(reply.body)
    except NotAnAnswer:
        return Reply(0, b"", Failure.NOT_AN_ANSWER), Usage()
