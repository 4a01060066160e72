"""Read a request for a batch: its fields, their rules, and the lenient form of the older local server."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
from django.conf import settings
from django.db import transaction

from batches import doorbell, intake, quota
from batches.carrying import FILES_GONE, EarlierFilesGone, check_files, find_earlier
from batches.models import HIGHEST_PRIORITY, LOWEST_PRIORITY, Batch, OnInvalidLine
from batches.states import TERMINAL
from batches.validation import ENDPOINTS, OPENAI_ENDPOINTS
from batches.webhooks import endpoints
from files import storage
from files.jsonl import iter_lines
from files.models import File, Purpose
from files.uploads import read_lifetime
from vbatch_site import audit
from vbatch_site.models import ApiKey, Project
from vbatch_site.openai.errors import ApiError, Json, check_bounds, missing, not_supported, wrong_id, wrong_type
from vbatch_site.openai.idempotency import Claim

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY = 64  # characters
MAX_METADATA_VALUE = 512  # characters
MAX_MODEL_NAME = 200  # characters

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def window_length(window: str) -> timedelta:
    """Return how long a completion window such as `24h` is; raise ValueError."""
    match = re.fullmatch(r"(\d{1,6})([smhd])", window)
    if match is None:
        raise ValueError(f"{window!r} is no completion window; use a number and one of s, m, h, d, such as 24h")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A checked request."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None
    default_model: str
    output_life_seconds: int | None
    allow_mixed_models: bool
    on_invalid_line: OnInvalidLine
    continue_from: str
    priority: int
    webhook: endpoints.BatchWebhook | None


def create(
    project: Project,
    body: Json,
    key: Claim | None = None,
    *,
    by: ApiKey | str | None = None,
    chosen_lines: list[str] | None = None,
) -> Batch:
    """Check a request and start its batch, or return the one that its key stands for; raise ApiError.

    `by` is the API key or the name of the person who asks. With chosen lines, by custom_id, only they run, and all
    others keep what they got in the batch to continue from.
    """
    if key and (held := key.holder()):
        return Batch.objects.get(pk=held)
    intake.check()
    wanted = read(project, body)
    with transaction.atomic():
        quota.check_batch_rate(project)
        batch = Batch.begin(
            window=window_length(wanted.completion_window),
            project=project,
            endpoint=wanted.endpoint,
            input_file_id=wanted.input_file_id,
            completion_window=wanted.completion_window,
            metadata=wanted.metadata,
            default_model=wanted.default_model,
            output_life_seconds=wanted.output_life_seconds,
            allow_mixed_models=wanted.allow_mixed_models,
            on_invalid_line=wanted.on_invalid_line,
            continue_from=wanted.continue_from,
            chosen_lines=chosen_lines,
            priority=wanted.priority,
            api_key=by if isinstance(by, ApiKey) else None,
            created_by=by[:150] if isinstance(by, str) else "",
        )
        audit.note_change(batch.pk)
        if wanted.webhook:
            endpoints.attach(batch, wanted.webhook)
        doorbell.ring_validate(batch.pk)
        holder = key.hold(batch.pk) if key else batch.pk
        if holder != batch.pk:
            # A request at the same time was first.
            transaction.set_rollback(True)
    return batch if holder == batch.pk else Batch.objects.get(pk=holder)


def read(project: Project, body: Json) -> BatchRequest:
    """Return the checked request, or raise ApiError."""
    file_id = _file_id(body)
    metadata = read_metadata(body.get("metadata"))
    # A longer name is no model's, whole or cut.
    default_model = (metadata or {}).get("model", "")[:MAX_MODEL_NAME]
    lenient = bool(default_model) or settings.VBATCH_LENIENT_CREATE
    file = _file(project, file_id)
    endpoint = body.get("endpoint")
    if endpoint is None and lenient and file is not None:
        endpoint = first_url(file)
    window = body.get("completion_window")
    if window is None and lenient:
        window = settings.VBATCH_COMPLETION_WINDOWS[0]
    _check_choice("endpoint", endpoint, ENDPOINTS, OPENAI_ENDPOINTS)
    _check_choice("completion_window", window, settings.VBATCH_COMPLETION_WINDOWS)
    webhook = endpoints.read_batch_webhook(body.get("webhook"))
    life = read_lifetime(body.get("output_expires_after"), "output_expires_after")
    if file is not None:
        _check_purpose(file)
    return BatchRequest(
        input_file_id=file_id,
        endpoint=str(endpoint),
        completion_window=str(window),
        metadata=metadata,
        default_model=default_model,
        output_life_seconds=life.seconds if life else None,
        allow_mixed_models=read_flag(body, "allow_mixed_models"),
        on_invalid_line=read_on_invalid_line(body),
        continue_from=_read_continue_from(project, body),
        priority=read_priority(body.get("priority")),
        webhook=webhook,
    )


def read_priority(value: Any) -> int:
    """Return a checked priority, 0 without one, or raise ApiError."""
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type("priority", "an integer", value)
    check_bounds("priority", value, LOWEST_PRIORITY, HIGHEST_PRIORITY)
    return value


def _file(project: Project, file_id: str) -> File | None:
    return File.objects.visible_to(project).filter(pk=file_id).first()


def _check_purpose(file: File) -> None:
    if file.purpose != Purpose.BATCH:
        message = f"Invalid file purpose: '{file.purpose}'. The input file of a batch must have purpose 'batch'."
        raise ApiError(message, param="input_file_id", code="invalid_file_purpose")


def no_such_file(file_id: str) -> ApiError:
    """Return the refusal of a request that needs its input file now."""
    message = f"No such File object: {file_id}"
    return ApiError(message, param="input_file_id", code="file_not_found", http_status=404)


def find_input(project: Project, body: Json) -> File:
    """Return the input file that a request names, or raise ApiError."""
    file_id = _file_id(body)
    file = _file(project, file_id)
    if file is None:
        raise no_such_file(file_id)
    _check_purpose(file)
    return file


def read_endpoint(body: Json, file: File) -> str:
    """Return the endpoint that a request names, or its file's first line, or raise ApiError."""
    endpoint = body.get("endpoint")
    if endpoint is None:
        endpoint = first_url(file)
    _check_choice("endpoint", endpoint, ENDPOINTS, OPENAI_ENDPOINTS)
    return str(endpoint)


def _file_id(body: Json) -> str:
    file_id = body.get("input_file_id")
    if file_id is None:
        raise missing("input_file_id")
    if not isinstance(file_id, str):
        raise wrong_type("input_file_id", "a string", file_id)
    if not file_id.startswith("file") or len(file_id) > 64 or not file_id.isprintable():
        raise wrong_id("input_file_id", file_id[:200], "file")
    return file_id


def read_flag(body: Json, param: str) -> bool:
    """Return an optional flag, or raise ApiError."""
    value = body.get(param)
    if value is not None and not isinstance(value, bool):
        raise wrong_type(param, "a boolean", value)
    return bool(value)


def read_on_invalid_line(body: Json) -> OnInvalidLine:
    """Return what a bad line does to the batch, or raise ApiError."""
    value = body.get("on_invalid_line")
    if value is None:
        return OnInvalidLine.FAIL
    _check_choice("on_invalid_line", value, OnInvalidLine.values)
    return OnInvalidLine(value)


def _read_continue_from(project: Project, body: Json) -> str:
    """Return the id of the batch whose answers are taken over, empty for none, or raise ApiError."""
    value = body.get("continue_from")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong_type("continue_from", "a string", value)
    if not value.startswith("batch"):
        raise wrong_id("continue_from", value[:200], "batch")
    earlier = find_earlier(project, value.replace("\0", ""))
    if earlier is None:
        raise ApiError(f"No batch found with id '{value[:200]}'.", param="continue_from", code="batch_not_found")
    if earlier.status not in TERMINAL:
        message = f"Can't continue from '{earlier.pk}': its status is '{earlier.status}', and it has to end first."
        raise ApiError(message, param="continue_from", code="batch_not_ended")
    try:
        check_files(earlier)
    except EarlierFilesGone as error:
        raise ApiError(str(error), param="continue_from", code=FILES_GONE) from None
    return earlier.pk


def _check_choice(param: str, value: Any, accepted: Any, named: Any = None) -> None:
    """Refuse a value outside the accepted ones; the message names the list that OpenAI's would."""
    if value is None:
        raise missing(param)
    if not isinstance(value, str):
        raise wrong_type(param, "a string", value)
    if value not in accepted:
        raise not_supported(param, value[:200], named or accepted)


def read_metadata(value: Any) -> dict[str, str] | None:
    """Return checked metadata, or raise ApiError."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise wrong_type("metadata", "an object", value)
    if len(value) > MAX_METADATA_PAIRS:
        message = (
            f"Invalid 'metadata': too many properties. Expected an object with at most {MAX_METADATA_PAIRS} "
            f"properties, but got an object with {len(value)} properties instead."
        )
        raise ApiError(message, param="metadata", code="object_above_max_properties")
    for key, text in value.items():
        if not isinstance(text, str):
            raise wrong_type(f"metadata.{key[:MAX_METADATA_KEY]}", "a string", text)
        if "\0" in key + text:
            raise ApiError(
                "Invalid 'metadata': the character U+0000 can't be stored.", param="metadata", code="invalid_value"
            )
        for what, limit in ((key, MAX_METADATA_KEY), (text, MAX_METADATA_VALUE)):
            if len(what) > limit:
                param = f"metadata.{key[:MAX_METADATA_KEY]}"
                message = (
                    f"Invalid '{param}': string too long. Expected a string with maximum length {limit}, "
                    f"but got a string with length {len(what)} instead."
                )
                raise ApiError(message, param=param, code="string_above_max_length")
    return value


def first_url(file: File) -> str | None:
    """Return the `url` of a file's first request, which stands for the endpoint that a lenient request left out."""
    try:
        with storage.opened(file.path) as stream:
            first = next((raw for _, _, raw in iter_lines(stream) if raw is not None and raw.strip()), b"")
        line = msgspec.json.decode(first)
    except (FileNotFoundError, msgspec.MsgspecError, RecursionError):
        return None
    url = line.get("url") if isinstance(line, dict) else None
    return url if isinstance(url, str) else None
