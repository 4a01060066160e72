"""The file object on the wire."""

from typing import Annotated, Literal, TypedDict

from msgspec import Meta

from files.models import File, Purpose, Upload, UploadPart, UploadState
from vbatch_site.openai.schema import PageDict, UnixTime

PurposeName = Annotated[str, Meta(extra_json_schema={"enum": Purpose.values})]


class FileDict(TypedDict):
    """OpenAI's file object."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: UnixTime
    expires_at: UnixTime | None
    filename: str
    purpose: PurposeName
    status: Literal["processed"]
    status_details: None


class FileListDict(PageDict):
    """One page of files."""

    data: list[FileDict]


class DeletedFileDict(TypedDict):
    """What is left of a deleted file."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


def file_dict(file: File) -> FileDict:
    """Return the wire form; `status` is deprecated but required."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": int(file.expires_at.timestamp()) if file.expires_at else None,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


class UploadDict(TypedDict):
    """OpenAI's upload object."""

    id: str
    object: Literal["upload"]
    bytes: int
    created_at: UnixTime
    expires_at: UnixTime
    filename: str
    purpose: PurposeName
    status: Annotated[str, Meta(extra_json_schema={"enum": UploadState.values})]
    file: FileDict | None


class PartDict(TypedDict):
    """OpenAI's upload part object."""

    id: str
    object: Literal["upload.part"]
    created_at: UnixTime
    upload_id: str


def upload_dict(upload: Upload) -> UploadDict:
    """Return the wire form, with the whole file once there is one."""
    return {
        "id": upload.pk,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": int(upload.created_at.timestamp()),
        "expires_at": int(upload.expires_at.timestamp()),
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.state,
        "file": file_dict(upload.file) if upload.file else None,
    }


def part_dict(part: UploadPart) -> PartDict:
    """Return the wire form."""
    return {
        "id": part.pk,
        "object": "upload.part",
        "created_at": int(part.created_at.timestamp()),
        "upload_id": part.upload_id,
    }
