"""Tell before a batch is made what it would be: faults, tokens, duplicates, time."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from threading import Timer
from typing import Annotated, Any, Literal, TypedDict

import msgspec
from django.conf import settings
from django.utils import timezone
from msgspec import Meta

from batches import creation, standing
from batches.catalogue import Engine, engines, known_models
from batches.inspection import EngineFacts, ModelReport, Report, Request
from batches.locks import batch_lock
from batches.models import OnInvalidLine
from batches.serializers import LineErrorDict
from files import storage
from files.models import File
from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError, Json, wrong_type

logger = logging.getLogger(__name__)

AT_ONCE = 2  # of all web processes: each takes a core or two
SECONDS = 120  # four times what the largest usual file takes


class FoundErrorsDict(TypedDict):
    """What is wrong with the file; the list ends after 500, the total does not."""

    object: Literal["list"]
    data: list[LineErrorDict]
    total: int


class TooLongDict(TypedDict):
    """A line that the model's context can't hold."""

    line: int
    custom_id: str
    prompt_tokens: int
    max_output_tokens: int | None


class TooLongLinesDict(TypedDict):
    """Lines that would fail with `context_length_exceeded`; the list ends after 500, the total does not."""

    object: Literal["list"]
    data: list[TooLongDict]
    total: int


class PreflightModelDict(TypedDict):
    """What the good lines of one model come to."""

    model: str
    requests: int
    duplicates: Annotated[int, Meta(description="Requests that get the answer of an equal one.")]
    prompt_tokens: Annotated[int | None, Meta(description="Of the lines that were counted; null where none was.")]
    prompt_tokens_reason: Annotated[str | None, Meta(description="Why prompt_tokens is null.")]
    not_counted: Annotated[dict[str, int], Meta(description="Lines that were not counted, by reason.")]
    context: Annotated[int | None, Meta(description="Tokens that prompt and answer may have together.")]
    too_long: TooLongLinesDict
    max_output_tokens: Annotated[int, Meta(description="Sum over the requests that name a limit.")]
    without_max_output_tokens: Annotated[int, Meta(description="Requests that name none.")]
    shared_prefix: Annotated[float, Meta(description="Part of the prompts that repeats the beginning of another.")]


class ExpectedDict(TypedDict):
    """What running the file would take, by what its models did in the last hour; null with the reason."""

    output_tokens: int | None
    seconds: Annotated[float | None, Meta(description="Of the engine, for this file alone.")]
    eta_earliest: Annotated[int | None, Meta(description="Unix time in seconds, if it were created now.")]
    eta_latest: Annotated[int | None, Meta(description="Unix time in seconds, if it were created now.")]
    reason: str | None


class PreflightDict(TypedDict):
    """What a batch of a file would be."""

    object: Literal["batch.preflight"]
    input_file_id: str
    endpoint: str
    ok: Annotated[bool, Meta(description="Whether a batch of it would run.")]
    requests: int
    invalid: int
    errors: FoundErrorsDict
    endpoints: Annotated[dict[str, int], Meta(description="Requests by the url that they name.")]
    models: list[PreflightModelDict]
    expected: ExpectedDict


def preflight(project: Project, body: Json) -> PreflightDict:
    """Return the report on a file, or raise ApiError. Takes seconds; call in a request's own thread."""
    file = creation.find_input(project, body)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise wrong_type("model", "a string", model)
    endpoint = creation.read_endpoint(body, file)
    wanted = {
        "endpoint": endpoint,
        "model": model or "",
        "share_answers": settings.VBATCH_SHARE_ANSWERS,
        "allow_mixed_models": creation.read_flag(body, "allow_mixed_models"),
        "skip": creation.read_on_invalid_line(body) == OnInvalidLine.SKIP,
    }
    with _slot():
        report = _inspect(file, wanted)
    return {
        "object": "batch.preflight",
        "input_file_id": file.pk,
        "endpoint": endpoint,
        "ok": report.ok,
        "requests": report.requests,
        "invalid": report.invalid,
        "errors": {
            "object": "list",
            "data": msgspec.to_builtins(report.errors),
            "total": report.total_errors,
        },
        "endpoints": report.endpoints,
        "models": [_model_dict(model) for model in report.models],
        "expected": _expected(report),
    }


def _model_dict(report: ModelReport) -> PreflightModelDict:
    found: PreflightModelDict = msgspec.to_builtins(report)
    listed = msgspec.to_builtins(report.too_long)
    found["too_long"] = {"object": "list", "data": listed, "total": report.too_long_total}
    del found["too_long_total"]  # type: ignore[typeddict-item]
    return found


def _expected(report: Report) -> ExpectedDict:
    now = timezone.now()
    found = standing.forecast({model.model: _work(model) for model in report.models}, now) if report.ok else None
    if found is None:
        reason = "Too little has been measured of its models lately." if report.ok else "It would not run."
        return {"output_tokens": None, "seconds": None, "eta_earliest": None, "eta_latest": None, "reason": reason}
    return {
        "output_tokens": found.output_tokens,
        "seconds": round(found.seconds, 1),
        "eta_earliest": int(now.timestamp() + found.span.earliest),
        "eta_latest": int(now.timestamp() + found.span.latest),
        "reason": None,
    }


def _work(report: ModelReport) -> standing.Work:
    lines = report.requests - report.duplicates
    tokens = report.prompt_tokens
    return standing.Work(
        lines=lines,
        # What repeats a prefix is in the engine's cache.
        prompt_tokens=None if tokens is None else tokens * (1 - report.shared_prefix) * lines / report.requests,
        most_output_tokens=None if report.without_max_output_tokens else report.max_output_tokens,
    )


@contextmanager
def _slot() -> Iterator[None]:
    """Hold one of the few places, in whichever process, or raise a 429."""
    for number in range(AT_ONCE):
        with batch_lock(f"preflight {number}") as mine:
            if mine:
                yield
                return
    message = f"This server looks at {AT_ONCE} files at a time. Please try again in a few seconds."
    raise ApiError(message, kind="requests", code="too_many_preflights", http_status=429, headers={"retry-after": "5"})


def _inspect(file: File, wanted: dict[str, Any]) -> Report:
    catalogue = known_models()
    try:
        descriptor = storage.local_descriptor(file.path)
    except FileNotFoundError:
        raise creation.no_such_file(file.pk) from None
    try:
        known = engines(catalogue)
        facts = {name: EngineFacts(**asdict(known.get(name) or Engine(name, (), None))) for name in catalogue}
        catalogued = {name: set(endpoints) for name, endpoints in catalogue.items()}
        request = Request(descriptor=descriptor, catalogue=catalogued, engines=facts, **wanted)
        answer = _run(msgspec.json.encode(request), descriptor)
    finally:
        os.close(descriptor)
    return msgspec.json.decode(answer, type=Report)


def _run(request: bytes, descriptor: int) -> bytes:
    """Run the inspection in a process that ends with this one; return its answer."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", "batches.inspection"],
        cwd=settings.BASE_DIR,
        env={**os.environ, **quiet, "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[descriptor],
    )
    timer = Timer(SECONDS, process.kill)
    timer.start()
    try:
        # Its standard input stays open: a process whose parent dies sees it close.
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 (for the type checker)
        process.stdin.write(request + b"\n")
        process.stdin.flush()
        answer = process.stdout.read()
    except BrokenPipeError:
        answer = b""
    finally:
        timed_out = not timer.is_alive()
        timer.cancel()
        process.kill()
        process.communicate()
    if not answer:
        logger.error("preflight failed", extra={"action": "preflight_failed", "timed_out": timed_out})
        if timed_out:
            message = f"The file could not be looked through in {SECONDS} seconds."
            raise ApiError(message, code="preflight_timeout", kind="server_error", http_status=503)
        raise ApiError("The file could not be looked through.", kind="server_error", http_status=500)
    return answer
