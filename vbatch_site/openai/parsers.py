"""Read request bodies strictly, and answer JSON whatever the client accepts."""

from collections.abc import Mapping
from typing import Any

import msgspec
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import close_old_connections
from django.http import HttpRequest
from django.utils.http import parse_header_parameters
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.parsers import MultiPartParser as DRFMultiPartParser
from rest_framework.request import Request

from vbatch_site.openai.bodies import is_whole
from vbatch_site.openai.errors import ApiError


class AlwaysJSON(BaseContentNegotiation):
    """Pick the first renderer: SDKs ask for `application/binary` on routes whose errors are JSON."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        """Return the parser for the body's type; a body without a type is read as JSON, as SDKs and curl send it."""
        media_type = (request.content_type or "application/json").split(";")[0].strip().lower()
        for parser in parsers:
            if parser.media_type == media_type:
                return parser
        return None

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        """Return the only renderer."""
        return renderers[0], renderers[0].media_type


def refuse_encoded(request: Request | HttpRequest) -> None:
    """Refuse a compressed body, which no SDK sends and which could unpack to any size."""
    encoding = request.META.get("HTTP_CONTENT_ENCODING", "identity")
    if encoding.lower() not in ("", "identity"):
        raise ApiError(
            f"Unsupported content encoding: '{encoding}'.", code="unsupported_content_encoding", http_status=415
        )


class JSONParser(BaseParser):
    """Parse a JSON object; NaN, lone surrogates and bottomless nesting are refused, an empty body is one."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """Return the object, or raise ApiError."""
        refuse_encoded((parser_context or {})["request"])
        data = stream.read(settings.DATA_UPLOAD_MAX_MEMORY_SIZE + 1)
        if len(data) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
            raise ApiError("The request body is too large.", code="request_too_large", http_status=413)
        if not data.strip():
            return {}
        try:
            body = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            raise ApiError("We could not parse the JSON body of your request.", code="invalid_json") from None
        if not isinstance(body, dict):
            raise ApiError("The JSON body of your request must be an object.", code="invalid_type")
        return body


class MultiPartParser(DRFMultiPartParser):
    """Parse multipart through Django's streaming parser; any fault of the body is the client's."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Mapping[str, Any] | None = None) -> Any:
        """Return the fields and files, or raise ApiError."""
        request: Request = (parser_context or {})["request"]
        refuse_encoded(request)
        # The body comes at the client's pace; the connection that looked up the key goes back to the pool meanwhile.
        close_old_connections()
        parsed = None
        try:
            parsed = super().parse(stream, media_type, parser_context)
        except UnicodeDecodeError:
            raise ApiError("The multipart body has a field that is not UTF-8.") from None
        except RequestDataTooBig:
            raise ApiError("File is too large.") from None
        finally:
            # Half a file would otherwise lie on disk until the garbage collector finds the exception that holds it.
            if parsed is None:
                for handler in request.upload_handlers:
                    handler.upload_interrupted()
        boundary = parse_header_parameters(media_type or "")[1].get("boundary", "")
        if not is_whole(request._request, boundary):
            # Django's parser takes the end of the body for the end of the file.
            for _, uploads in parsed.files.lists():
                for upload in uploads:
                    upload.close()
            raise ApiError("The multipart body ends before its closing boundary.")
        return parsed
