"""Make files: the rules of an upload, whatever road its bytes took."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, BinaryIO, cast

from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.utils import timezone

from files import room, storage
from files.jsonl import iter_lines
from files.models import BATCH_FILE_LIFE, UPLOAD_PURPOSES, File, Purpose
from vbatch_site.models import ApiKey, Project
from vbatch_site.openai import ids, owned
from vbatch_site.openai.errors import ApiError, check_bounds, missing, not_supported, wrong_type
from vbatch_site.openai.idempotency import Claim

# OpenAI's limits (contract.md 1.1); whether its MB are 10**6 or 2**20 bytes is not known, so the larger reading holds.
MAX_FILE_BYTES = 512 << 20
MAX_BATCH_FILE_BYTES = 200 << 20
MIN_LIFE_SECONDS = 3600
MAX_LIFE_SECONDS = 2_592_000

_NOT_JSONL = "Invalid file format for Batch API. Must be .jsonl"


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a file stays, counted from its creation."""

    seconds: int

    def ends(self, created_at: datetime) -> datetime:
        """Return the moment of expiry."""
        return created_at + timedelta(seconds=self.seconds)


def read_lifetime(value: Any, param: str = "expires_after") -> Lifetime | None:
    """Return the lifetime that an `expires_after` object asks for, None without one, or raise ApiError."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise wrong_type(param, "an object", value)
    for key in ("anchor", "seconds"):
        if value.get(key) is None:
            raise missing(f"{param}.{key}")
    if value["anchor"] != "created_at":
        raise not_supported(f"{param}.anchor", value["anchor"], ["created_at"])
    seconds = value["seconds"]
    # A multipart form has only text (contract.md 1.1).
    if isinstance(seconds, str) and seconds.isascii() and seconds.isdigit() and len(seconds) < 20:
        seconds = int(seconds)
    if not isinstance(seconds, int) or isinstance(seconds, bool):
        raise wrong_type(f"{param}.seconds", "an integer", seconds)
    check_bounds(f"{param}.seconds", seconds, MIN_LIFE_SECONDS, MAX_LIFE_SECONDS)
    return Lifetime(seconds)


def check_purpose(purpose: object) -> str:
    """Return a purpose that may be uploaded, or raise ApiError in the words of OpenAI's older validators."""
    if purpose is None or purpose == "":
        raise ApiError("'purpose' is a required property")
    if purpose not in UPLOAD_PURPOSES:
        raise ApiError(f"'{purpose}' is not one of {UPLOAD_PURPOSES} - 'purpose'", param="purpose")
    return str(purpose)


def check_content(stream: BinaryIO, size: int, purpose: str) -> None:
    """Refuse a file over its limit, and a batch file whose first line is no JSON object; raise ApiError."""
    if size > (MAX_BATCH_FILE_BYTES if purpose == Purpose.BATCH else MAX_FILE_BYTES):
        raise ApiError("File is too large.")
    check_first_line(stream, purpose)


def check_first_line(stream: BinaryIO, purpose: str) -> None:
    """Refuse a batch file whose first line is no JSON object; raise ApiError."""
    if purpose != Purpose.BATCH:
        return
    stream.seek(0)
    first = next((line for _, _, line in iter_lines(stream) if line is None or line.strip()), b"")
    try:
        # The standard library, once a file: it takes all that JSON allows, and what is refused later has a line number.
        # A byte-order mark passes, as the contract has it: the batch fails, and names line 1.
        parsed = json.loads((first or b"").decode("utf-8-sig"))
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise ApiError(_NOT_JSONL, siblings={"detail": {"message": _NOT_JSONL, "code": None}})


def clean_filename(name: str | None) -> str:
    """Return a name fit to be shown and kept; it is never used as a path."""
    cleaned = "".join(char for char in (name or "") if char.isprintable()).strip()
    return os.path.basename(cleaned)[:512] or "upload"


def expiry(purpose: str, lifetime: Lifetime | None, created_at: datetime) -> datetime | None:
    """Return when a new file expires: as asked for, or after 30 days for batch files, or never."""
    if lifetime is not None:
        return lifetime.ends(created_at)
    return created_at + BATCH_FILE_LIFE if purpose in (Purpose.BATCH, Purpose.BATCH_OUTPUT) else None


def no_such_file(file_id: str) -> ApiError:
    """Return the 404 of a file."""
    return ApiError(f"No such File object: {file_id[:200]}", param="id", http_status=404)


def find(project: Project, file_id: str) -> File:
    """Return the project's file, or raise the 404 that also hides other projects' files."""
    return owned.find(File.objects.visible_to(project), project, file_id, no_such_file(file_id))


def announce(
    project: Project,
    purpose: str,
    filename: str,
    size: int,
    lifetime: Lifetime | None,
    *,
    more: int | None = None,
    by: ApiKey | None = None,
) -> File:
    """Return a file whose row is saved and whose bytes are still to be stored under its path; raise ApiError.

    `by` is the API key of who sends it.
    `more` is what it adds to the project's bytes, where that is not its size: parts count from their arrival.
    """
    now = timezone.now()
    file_id = ids.file_id()
    file = File(
        id=file_id,
        project=project,
        purpose=purpose,
        filename=filename,
        bytes=size,
        api_key=by,
        path=storage.file_name(file_id),
        created_at=now,
        expires_at=expiry(purpose, lifetime, now),
    )
    with transaction.atomic():
        room.check(project, size if more is None else more)
        file.announce()
    return file


def discard(file: File) -> None:
    """Remove an announced file that is not to arrive."""
    storage.delete(file.path)
    File.objects.filter(pk=file.pk).delete()


def storage_refusal(error: storage.StorageFull) -> ApiError:
    """Return the answer to bytes that there is no room for."""
    message = f"The server can't store the file: {error.strerror}."
    return ApiError(message, kind="server_error", code="storage_error", http_status=507)


def keep(upload: "UploadedFile[Any]", name: str) -> None:
    """Store uploaded bytes under the name; raise ApiError."""
    try:
        storage.keep_upload(upload, name)
    except storage.StorageFull as error:
        raise storage_refusal(error) from error


def create_file(
    project: Project,
    upload: "UploadedFile[Any]",
    purpose: str,
    lifetime: Lifetime | None,
    key: Claim | None = None,
    by: ApiKey | None = None,
) -> File:
    """Check and store an uploaded file; raise ApiError, and leave nothing behind, when it can't be taken.

    With a claim on a key, the file that has it already is returned instead of a second one.
    """
    check_content(cast(BinaryIO, upload.file), upload.size or 0, purpose)
    file = announce(project, purpose, clean_filename(upload.name), upload.size or 0, lifetime, by=by)
    try:
        keep(upload, file.path)
        with transaction.atomic():
            holder = key.hold(file.pk) if key else file.pk
            if holder == file.pk:
                file.arrive()
    finally:
        if file.deleted_at is not None:
            discard(file)
    return file if holder == file.pk else find(project, holder)
