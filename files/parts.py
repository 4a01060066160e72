"""Uploads in parts: take them in any order, and join them into one file.

Rows come before bytes and leave after them, so that whatever a crash cuts off, the sweep finds the rest.
"""

import hashlib
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO

from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.db.models import F, Q
from django.utils import timezone

from files import room, storage, uploads
from files.models import (
    ARRIVAL_TIME,
    UPLOAD_LIFE,
    UPLOAD_PURPOSES,
    File,
    NeverArrived,
    Purpose,
    Upload,
    UploadPart,
    UploadState,
)
from vbatch_site.models import ApiKey, Project
from vbatch_site.openai import ids
from vbatch_site.openai.errors import ApiError, Json, check_bounds, missing, not_supported, wrong_type

MAX_UPLOAD_BYTES = 8 << 30  # OpenAI's 8 GB, read as the larger of its two meanings
MAX_PARTS = 10_000

MAX_TEXT = 512  # characters of a filename or a MIME type
_BLOCK = 1 << 20  # bytes digested at a time
_SWEPT_AT_ONCE = 1000  # rows


def begin(project: Project, body: Json) -> Upload:
    """Check a request for an upload and save it; raise ApiError."""
    size = body.get("bytes")
    if size is None:
        raise missing("bytes")
    if not isinstance(size, int) or isinstance(size, bool):
        raise wrong_type("bytes", "an integer", size)
    filename, mime_type = _text(body, "filename"), _text(body, "mime_type")
    purpose = _purpose(body)
    check_bounds("bytes", size, 0, MAX_UPLOAD_BYTES)
    if purpose == Purpose.BATCH and size > uploads.MAX_BATCH_FILE_BYTES:
        raise ApiError("File is too large.")
    lifetime = uploads.read_lifetime(body.get("expires_after"))
    now = timezone.now()
    return Upload.objects.create(
        id=ids.timed_id("upload", int(now.timestamp())),
        project=project,
        purpose=purpose,
        filename=uploads.clean_filename(filename),
        mime_type=mime_type[:255],
        bytes=size,
        life_seconds=lifetime.seconds if lifetime else None,
        created_at=now,
        expires_at=now + UPLOAD_LIFE,
    )


def _text(body: Json, name: str) -> str:
    value = body.get(name)
    if value is None:
        raise missing(name)
    if not isinstance(value, str):
        raise wrong_type(name, "a string", value)
    if not value or len(value) > MAX_TEXT or "\0" in value:
        raise ApiError(
            f"Invalid '{name}': expected 1 to {MAX_TEXT} characters, none of them U+0000.",
            param=name,
            code="invalid_value",
        )
    return value


def _purpose(body: Json) -> str:
    """Return the purpose; this route answers in the words of the newer validators."""
    purpose = body.get("purpose")
    if purpose is None:
        raise missing("purpose")
    if not isinstance(purpose, str):
        raise wrong_type("purpose", "a string", purpose)
    if purpose not in UPLOAD_PURPOSES:
        raise not_supported("purpose", purpose[:200], UPLOAD_PURPOSES)
    return purpose


def check_open(upload: Upload) -> None:
    """Refuse an upload that has ended; end one whose hour is over."""
    if upload.state == UploadState.PENDING and upload.expires_at <= timezone.now():
        _end(upload, UploadState.EXPIRED)
    if upload.state != UploadState.PENDING:
        raise ApiError(f"Upload '{upload.pk}' is {upload.state}: it takes no more parts and can't be completed.")


def add(upload: Upload, data: "UploadedFile[Any]") -> UploadPart:
    """Store one part; raise ApiError."""
    now = timezone.now()
    size = data.size or 0
    part_id = ids.timed_id("part", int(now.timestamp()))
    part = UploadPart(id=part_id, upload=upload, bytes=size, path=storage.part_name(part_id), created_at=now)
    with transaction.atomic():
        room.check(upload.project, size)
        # The guard and the counters are one UPDATE: no part slips in after the end, and no two past the limits.
        open_one = Upload.objects.pending().filter(
            pk=upload.pk,
            expires_at__gt=now,
            received_bytes__lte=MAX_UPLOAD_BYTES - size,
            received_parts__lt=MAX_PARTS,
        )
        taken = open_one.update(received_bytes=F("received_bytes") + size, received_parts=F("received_parts") + 1)
        if taken:
            part.save(force_insert=True)
    if not taken:
        upload.refresh_from_db()
        check_open(upload)
        raise ApiError(f"An upload takes at most {MAX_UPLOAD_BYTES} bytes and {MAX_PARTS} parts in total.")
    uploads.keep(data, part.path)
    if not UploadPart.objects.filter(pk=part.pk).update(stored=True):
        # The project was deleted meanwhile.
        storage.delete(part.path)
        raise ApiError(f"No such Upload object: {upload.pk}", param="upload_id", http_status=404)
    return part


def complete(upload: Upload, body: Json, by: ApiKey | None = None) -> Upload:
    """Join the named parts, in the order they are named, into the upload's file; raise ApiError.

    A repeated call with the same body answers as the first did, also when both run at once.
    """
    part_ids, md5 = _read_part_ids(body), _read_md5(body)
    recipe = hashlib.sha256("\n".join([md5, *part_ids]).encode()).hexdigest()
    if upload.state == UploadState.COMPLETED and upload.recipe == recipe:
        return upload
    check_open(upload)
    paths = _paths(upload, part_ids)
    file = _new_file(upload, by)
    try:
        _join(paths, file, md5)
        with transaction.atomic():
            done = Upload.objects.pending().filter(pk=upload.pk)
            won = done.update(state=UploadState.COMPLETED, file=file, recipe=recipe)
            if won:
                file.arrive()
    except FileNotFoundError:
        won = 0  # another call ended the upload while this one was joining, and its parts are gone
    except storage.StorageFull as error:
        raise uploads.storage_refusal(error) from error
    except NeverArrived:
        raise ApiError("Joining the parts took too long.", kind="server_error", http_status=503) from None
    finally:
        if file.deleted_at is not None:
            uploads.discard(file)
    upload.refresh_from_db()
    if won:
        _drop_parts(upload.parts.all())
    elif upload.state != UploadState.COMPLETED or upload.recipe != recipe:
        check_open(upload)
        raise ApiError("The server has lost a part of this upload.", kind="server_error", http_status=500)
    return upload


def _read_part_ids(body: Json) -> list[str]:
    part_ids = body.get("part_ids")
    if part_ids is None:
        raise missing("part_ids")
    if not isinstance(part_ids, list):
        raise wrong_type("part_ids", "an array", part_ids)
    for index, part_id in enumerate(part_ids):
        if not isinstance(part_id, str):
            raise wrong_type(f"part_ids[{index}]", "a string", part_id)
    if len(set(part_ids)) < len(part_ids):
        raise ApiError("Invalid 'part_ids': a part is named twice.", param="part_ids", code="invalid_value")
    return part_ids


def _read_md5(body: Json) -> str:
    md5 = body.get("md5")
    if md5 is None:
        return ""
    if not isinstance(md5, str):
        raise wrong_type("md5", "a string", md5)
    if not re.fullmatch(r"[0-9a-fA-F]{32}", md5):
        raise ApiError("Invalid 'md5': expected 32 hexadecimal digits.", param="md5", code="invalid_value")
    return md5.lower()


def _paths(upload: Upload, part_ids: list[str]) -> list[str]:
    """Return where the parts lie, or refuse parts that are not there or do not add up."""
    known = {part.pk: part for part in upload.parts.filter(stored=True)}
    for part_id in part_ids:
        if part_id not in known:
            raise ApiError(f"No such UploadPart object: {part_id[:200]}", param="part_ids", http_status=404)
    total = sum(known[part_id].bytes for part_id in part_ids)
    if total != upload.bytes:
        message = f"The parts have {total} bytes together, but the upload was created for {upload.bytes} bytes."
        raise ApiError(message, param="part_ids", code="invalid_value")
    return [known[part_id].path for part_id in part_ids]


def _new_file(upload: Upload, by: ApiKey | None) -> File:
    lifetime = uploads.Lifetime(upload.life_seconds) if upload.life_seconds else None
    return uploads.announce(upload.project, upload.purpose, upload.filename, upload.bytes, lifetime, more=0, by=by)


def _join(paths: list[str], file: File, md5: str) -> None:
    with storage.joining(paths, file.path) as joined:
        if joined.seek(0, 2) != file.bytes:
            raise FileNotFoundError(file.path)
        if md5 and _digest(joined) != md5:
            raise ApiError("The md5 of the joined parts is not the given one.", param="md5", code="invalid_value")
        uploads.check_first_line(joined, file.purpose)


def _digest(stream: BinaryIO) -> str:
    stream.seek(0)
    md5 = hashlib.md5(usedforsecurity=False)
    while block := stream.read(_BLOCK):
        md5.update(block)
    return md5.hexdigest()


def cancel(upload: Upload) -> None:
    """End an upload without a file; raise ApiError when it has one, or is too old."""
    if upload.state == UploadState.CANCELLED:
        return
    check_open(upload)
    _end(upload, UploadState.CANCELLED)
    if upload.state != UploadState.CANCELLED:
        check_open(upload)


def _end(upload: Upload, state: UploadState) -> None:
    """Move a pending upload to its end and remove its parts; the upload then shows what the row says."""
    won = Upload.objects.pending().filter(pk=upload.pk).update(state=state)
    upload.refresh_from_db()
    if won:
        _drop_parts(upload.parts.all())


def _drop_parts(parts: Any) -> None:
    """Remove stored parts: bytes first, so that a crash leaves the row that leads to them.

    A part still on its way keeps its row: its bytes may get their name a moment from now.
    """
    for part in parts.filter(stored=True):
        storage.delete(part.path)
        part.delete()


def sweep(now: datetime) -> None:
    """End uploads whose hour is over, and remove what ended ones and crashes left."""
    for upload in Upload.objects.pending().filter(expires_at__lte=now)[:_SWEPT_AT_ONCE]:
        _end(upload, UploadState.EXPIRED)
    for part in _left_over(now):
        storage.delete(part.path)
        part.delete()
    # Until then a late call hears how its upload ended.
    ended = Upload.objects.exclude(state=UploadState.PENDING).filter(expires_at__lte=now - ARRIVAL_TIME, parts=None)
    Upload.objects.filter(pk__in=ended.values("pk")[:_SWEPT_AT_ONCE]).delete()


def _left_over(now: datetime) -> Iterator[UploadPart]:
    ended = Q(stored=True) & ~Q(upload__state=UploadState.PENDING)
    never_stored = Q(stored=False, created_at__lte=now - ARRIVAL_TIME)
    yield from UploadPart.objects.filter(ended | never_stored)[:_SWEPT_AT_ONCE]
