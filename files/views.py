"""The Files API."""

import re
from typing import Any
from urllib.parse import quote

from django.db import close_old_connections
from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from django.http.response import HttpResponseBase
from rest_framework.response import Response
from rest_framework.views import APIView

from files import deletion, parts, schema, storage, uploads
from files.models import PRIVATE_PURPOSES, File, Upload
from files.multipart import DataParser
from files.serializers import file_dict, part_dict, upload_dict
from vbatch_site import traces
from vbatch_site.openai import idempotency, owned
from vbatch_site.openai.auth import ApiRequest
from vbatch_site.openai.errors import ApiError, Json, missing
from vbatch_site.openai.pagination import page
from vbatch_site.openai.parsers import MultiPartParser


def nested(form: Any, name: str) -> Json | None:
    """Return the object that a form spells as `name[key]` fields, None without any."""
    pattern = re.compile(rf"{re.escape(name)}\[(\w+)\]")
    found = {match[1]: form[key] for key in form if (match := pattern.fullmatch(key))}
    return found or None


@schema.files
class FilesView(APIView):
    """Upload and list files."""

    parser_classes = [MultiPartParser]

    def post(self, request: ApiRequest) -> Response:
        """Store one file; the order of the form's fields is the client's own."""
        form = request.data
        purpose = uploads.check_purpose(form.get("purpose"))
        lifetime = uploads.read_lifetime(nested(form, "expires_after"))
        upload = request.FILES.get("file")
        if upload is None:
            raise ApiError("'file' is a required property")
        seconds = lifetime and lifetime.seconds
        key = idempotency.claim(request, purpose, seconds, upload.name, getattr(upload, "digest", ""))
        if key and (held := key.holder()):
            return Response(file_dict(uploads.find(request.user, held)))
        file = uploads.create_file(request.user, upload, purpose, lifetime, key, request.auth)
        traces.name_request(request, "upload", file.pk, first=True, file=file.pk, bytes=file.bytes)
        return Response(file_dict(file))

    def get(self, request: ApiRequest) -> Response:
        """List files, newest first."""
        rows: QuerySet[File] = File.objects.visible_to(request.user)
        if purpose := request.query_params.get("purpose"):
            rows = rows.filter(purpose=purpose.replace("\0", ""))
        owned = File.objects.filter(project=request.user)
        return Response(
            page(
                rows,
                owned,
                request.query_params,
                default=schema.LARGEST_PAGE,
                maximum=schema.LARGEST_PAGE,
                serialize=lambda rows: [file_dict(row) for row in rows],
                orderable=True,
            )
        )


@schema.file
class FileView(APIView):
    """One file."""

    def get(self, request: ApiRequest, file_id: str) -> Response:
        """Show it."""
        return Response(file_dict(uploads.find(request.user, file_id)))

    def delete(self, request: ApiRequest, file_id: str) -> Response:
        """Delete it; a batch that is still reading it goes on, and its bytes go when none does."""
        file = uploads.find(request.user, file_id)
        deletion.delete(file)
        return Response({"id": file.pk, "object": "file", "deleted": True})


def content_response(file: File) -> HttpResponseBase:
    """Return a file's bytes as a download; raise ApiError."""
    if file.purpose in PRIVATE_PURPOSES:
        raise ApiError(f"Not allowed to download files of purpose: {file.purpose}")
    try:
        # Opened before the answer starts: what can't be read must not become a 200 that breaks off.
        source = storage.opened(file.path)
    except FileNotFoundError:
        raise uploads.no_such_file(file.pk) from None
    # A slow client may take hours; the connection that looked up the key goes back to the pool meanwhile.
    close_old_connections()
    response = StreamingHttpResponse(storage.stream(source), content_type="application/octet-stream")
    response.headers["content-length"] = str(file.bytes)
    ascii_name = re.sub(r'[^\x20-\x7e]|["\\%]', "_", file.filename)
    response.headers["content-disposition"] = (
        f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(file.filename, safe='')}"
    )
    return response


@schema.content
class FileContentView(APIView):
    """One file's bytes."""

    def get(self, request: ApiRequest, file_id: str) -> HttpResponseBase:
        """Stream them as they were stored."""
        file = uploads.find(request.user, file_id)
        return content_response(file)


def find_upload(request: ApiRequest, upload_id: str) -> Upload:
    """Return the project's upload, or raise the 404 that also hides other projects' uploads."""
    refusal = ApiError(f"No such Upload object: {upload_id[:200]}", param="upload_id", http_status=404)
    return owned.find(Upload.objects.select_related("project", "file"), request.user, upload_id, refusal)


@schema.uploads
class UploadsView(APIView):
    """Files that come in parts."""

    def post(self, request: ApiRequest) -> Response:
        """Begin one; it takes parts for an hour."""
        return Response(upload_dict(parts.begin(request.user, request.data)))


@schema.parts
class PartsView(APIView):
    """The parts of one upload, in any order and at the same time."""

    parser_classes = [DataParser]

    def post(self, request: ApiRequest, upload_id: str) -> Response:
        """Store one part."""
        upload = find_upload(request, upload_id)
        # Before the body is read: nobody should send 64 MiB to hear that the upload has ended.
        parts.check_open(upload)
        data = request.data.get("data")
        if data is None:
            raise missing("data")
        return Response(part_dict(parts.add(upload, data)))


@schema.complete
class CompleteView(APIView):
    """The end of one upload, as a file."""

    def post(self, request: ApiRequest, upload_id: str) -> Response:
        """Join the parts in the order they are named."""
        upload = parts.complete(find_upload(request, upload_id), request.data, request.auth)
        traces.name_request(request, "upload", str(upload.file_id), first=True, file=upload.file_id)
        return Response(upload_dict(upload))


@schema.cancel
class CancelUploadView(APIView):
    """The end of one upload, without a file."""

    def post(self, request: ApiRequest, upload_id: str) -> Response:
        """Cancel it."""
        upload = find_upload(request, upload_id)
        parts.cancel(upload)
        return Response(upload_dict(upload))
