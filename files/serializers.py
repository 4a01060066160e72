"""The file object on the wire."""

from typing import TypedDict

from files.models import File, Upload, UploadPart


class FileDict(TypedDict):
    """OpenAI's file object (contract.md 1.2)."""

    id: str
    object: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: str
    status_details: str | None


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
    """OpenAI's upload object (contract.md 5)."""

    id: str
    object: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileDict | None


class PartDict(TypedDict):
    """OpenAI's upload part object."""

    id: str
    object: str
    created_at: int
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
