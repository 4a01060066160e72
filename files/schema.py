"""How the Files and Uploads APIs are described."""

from typing import Annotated, NotRequired, TypedDict

from drf_spectacular.utils import OpenApiParameter, extend_schema_view
from msgspec import Meta

from files.models import UPLOAD_PURPOSES
from files.parts import MAX_TEXT, MAX_UPLOAD_BYTES
from files.serializers import DeletedFileDict, FileDict, FileListDict, PartDict, UploadDict
from files.uploads import MAX_LIFE_SECONDS, MIN_LIFE_SECONDS
from vbatch_site.openai.schema import AFTER, ORDER, LifetimeDict, limit, operation

FILES, UPLOADS = "Files", "Uploads"
LARGEST_PAGE = 10_000  # both the default and the maximum (contract.md 1.3)

Text = Annotated[str, Meta(min_length=1, max_length=MAX_TEXT, pattern="^[^\\x00]*$")]


class CreateUploadDict(TypedDict):
    """A file that will come in parts."""

    bytes: Annotated[int, Meta(ge=0, le=MAX_UPLOAD_BYTES, description="What the parts add up to; 200 MiB for batch.")]
    filename: Text
    mime_type: Text
    purpose: Annotated[str, Meta(extra_json_schema={"enum": UPLOAD_PURPOSES})]
    expires_after: NotRequired[LifetimeDict | None]


class CompleteUploadDict(TypedDict):
    """Which parts make the file, in their order."""

    part_ids: list[str]
    md5: NotRequired[Annotated[str, Meta(pattern="^[0-9a-fA-F]{32}$")] | None]


_BINARY = {"type": "string", "format": "binary"}
_FILE_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": _BINARY | {"description": "For purpose batch: JSONL, at most 200 MiB. Otherwise at most 512 MiB."},
        "purpose": {"type": "string", "enum": UPLOAD_PURPOSES},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": MIN_LIFE_SECONDS, "maximum": MAX_LIFE_SECONDS},
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
}
_PART_FORM = {
    "type": "object",
    "required": ["data"],
    "properties": {"data": _BINARY | {"description": "At most 67,108,864 bytes."}},
}
_PURPOSE = OpenApiParameter("purpose", str, description="Only files of this purpose, such as batch_output.")

files = extend_schema_view(
    post=operation(
        "createFile",
        tag=FILES,
        summary="Upload a file",
        form=_FILE_FORM,
        answer=FileDict,
        refuses=[404, 409, 507],
        repeatable=True,
    ),
    get=operation(
        "listFiles",
        tag=FILES,
        summary="List files",
        query=[limit(LARGEST_PAGE, LARGEST_PAGE), ORDER, AFTER, _PURPOSE],
        answer=FileListDict,
        refuses=[400],
    ),
)
file = extend_schema_view(
    get=operation("retrieveFile", tag=FILES, summary="Show a file", path="file_id", answer=FileDict),
    delete=operation("deleteFile", tag=FILES, summary="Delete a file", path="file_id", answer=DeletedFileDict),
)
content = extend_schema_view(
    get=operation(
        "downloadFile",
        tag=FILES,
        summary="Download a file's content",
        path="file_id",
        answer={(200, "application/octet-stream"): _BINARY},
        refuses=[400],
    )
)
uploads = extend_schema_view(
    post=operation(
        "createUpload", tag=UPLOADS, summary="Begin an upload in parts", body=CreateUploadDict, answer=UploadDict
    )
)
parts = extend_schema_view(
    post=operation(
        "addUploadPart",
        tag=UPLOADS,
        summary="Add a part",
        path="upload_id",
        form=_PART_FORM,
        answer=PartDict,
        refuses=[507],
    )
)
complete = extend_schema_view(
    post=operation(
        "completeUpload",
        tag=UPLOADS,
        summary="Join the parts into a file",
        path="upload_id",
        body=CompleteUploadDict,
        answer=UploadDict,
        refuses=[507],
    )
)
cancel = extend_schema_view(
    post=operation(
        "cancelUpload", tag=UPLOADS, summary="Cancel an upload", path="upload_id", answer=UploadDict, refuses=[400]
    )
)
