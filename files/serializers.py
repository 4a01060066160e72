"""The file object on the wire."""

from typing import TypedDict

from files.models import File


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
