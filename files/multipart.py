"""Read the one large field of a form as a file, also when the client sent it without a filename."""

from collections.abc import Mapping
from typing import Any

from django.core.files.uploadedfile import TemporaryUploadedFile
from django.db import close_old_connections
from django.http.multipartparser import ChunkIter, LazyStream, MultiPartParserError, Parser
from django.utils.http import parse_header_parameters
from rest_framework.parsers import BaseParser

from vbatch_site.openai.bodies import is_whole
from vbatch_site.openai.errors import ApiError
from vbatch_site.openai.parsers import refuse_encoded

MAX_PART_BYTES = 64 << 20  # the SDK's DEFAULT_PART_SIZE, which is above 64 * 10**6 (contract.md 5)

_FIELD = "data"
_TOO_LARGE = f"Part is too large. The maximum is {MAX_PART_BYTES} bytes."
_UNREADABLE = "The multipart body has too many parts or a part that can't be read."
_MAX_FIELDS = 20
_BLOCK = 1 << 16  # bytes


class DataParser(BaseParser):
    """Parse multipart into its `data` field, on disk; other fields are ignored.

    Django's own parser holds a field without a filename in memory, and takes it for text.
    """

    media_type = "multipart/form-data"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """Return the field as an uploaded file in a dictionary, or raise ApiError."""
        request = (parser_context or {})["request"]
        refuse_encoded(request)
        # The body comes at the client's pace; the connection that looked up the key goes back to the pool meanwhile.
        close_old_connections()
        boundary = parse_header_parameters(media_type or "")[1].get("boundary", "")
        if not boundary or len(boundary) > 200 or not boundary.isascii():
            raise ApiError(f"Invalid boundary in multipart: {boundary[:200]}")
        found: TemporaryUploadedFile | None = None
        try:
            found = _read(stream, boundary.encode())
            if not is_whole(request._request, boundary):
                raise ApiError("The multipart body ends before its closing boundary.")
        except BaseException as error:
            if found is not None:
                found.close()
            if isinstance(error, MultiPartParserError | UnicodeDecodeError):
                raise ApiError(_UNREADABLE) from None
            raise
        return {} if found is None else {_FIELD: found}


def _read(stream: Any, boundary: bytes) -> TemporaryUploadedFile | None:
    found: TemporaryUploadedFile | None = None
    for count, (_, headers, content) in enumerate(Parser(LazyStream(ChunkIter(stream, _BLOCK)), boundary)):
        if count > _MAX_FIELDS:
            raise ApiError(_UNREADABLE)
        name = headers.get("content-disposition", ("", {}))[1].get("name", b"")
        if name != _FIELD.encode() or found is not None:
            for _ in content:
                pass
            continue
        encoding = str(headers.get("content-transfer-encoding", ("binary",))[0]).strip().lower()
        if encoding not in ("binary", "8bit", "7bit"):
            raise ApiError(f"Unsupported content transfer encoding: '{encoding}'.")
        found = _keep(content)
    return found


def _keep(content: Any) -> TemporaryUploadedFile:
    kept, size = TemporaryUploadedFile("part", "application/octet-stream", 0, None), 0
    try:
        for block in content:
            size += len(block)
            if size > MAX_PART_BYTES:
                raise ApiError(_TOO_LARGE)
            kept.write(block)
        kept.flush()
    except BaseException:
        kept.close()
        raise
    kept.size = size
    return kept
