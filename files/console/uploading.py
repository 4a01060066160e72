"""Uploads from the browser: the parts of the Uploads API, for a session instead of a key.

The API takes no cookie, so that no other site can act through a browser; these routes take no key, and want the
session's CSRF token. Below them is the same code.
"""

import json
from typing import Any

from django.core.files.uploadedfile import TemporaryUploadedFile
from django.http import HttpRequest, JsonResponse, UnreadablePostError
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse

from files import parts
from files.models import Purpose, Upload
from vbatch_site.console.pages import json_error, page
from vbatch_site.console.roles import Right
from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError

# A part that breaks off is sent again: small enough to cost little, large enough that 200 MB take 50 requests.
PART_BYTES = 4 << 20
_BLOCK = 1 << 16


@page(Right.OPERATE, methods=("POST",))
def begin(request: HttpRequest) -> HttpResponseBase:
    """Begin an upload; the body is JSON with project, filename and bytes."""
    try:
        wanted = json.loads(request.body)
        project = Project.objects.get(pk=int(wanted["project"]), deleted_at=None)
        body = {
            "purpose": Purpose.BATCH.value,
            "filename": wanted["filename"],
            "mime_type": "application/jsonl",
            "bytes": wanted["bytes"],
        }
        upload = parts.begin(project, body)
    except (ValueError, KeyError, TypeError, Project.DoesNotExist):
        return json_error(ApiError("Choose a project and a file."))
    except ApiError as error:
        return json_error(error)
    return JsonResponse({"id": upload.pk, "part_bytes": PART_BYTES})


@page(Right.OPERATE)
def state(request: HttpRequest, upload_id: str) -> HttpResponseBase:
    """Say whether an upload still takes parts, and which it has: what a browser asks before it goes on."""
    upload = get_object_or_404(Upload, pk=upload_id)
    stored = upload.parts.filter(stored=True).values_list("pk", flat=True)
    return JsonResponse({"state": upload.state, "parts": list(stored), "part_bytes": PART_BYTES})


@page(Right.OPERATE, methods=("POST",))
def part(request: HttpRequest, upload_id: str) -> HttpResponseBase:
    """Take one part; the body is its bytes."""
    upload = get_object_or_404(Upload.objects.select_related("project"), pk=upload_id)
    try:
        parts.check_open(upload)
        kept = _keep(request)
        try:
            stored = parts.add(upload, kept)
        finally:
            kept.close()
    except ApiError as error:
        return json_error(error)
    except (UnreadablePostError, OSError):
        return json_error(ApiError("The part did not come whole.", http_status=408))
    return JsonResponse({"id": stored.pk})


def _keep(request: HttpRequest) -> "TemporaryUploadedFile":
    kept, size = TemporaryUploadedFile("part", "application/octet-stream", 0, None), 0
    try:
        while block := request.read(_BLOCK):
            size += len(block)
            if size > PART_BYTES:
                raise ApiError(f"Part is too large. The maximum is {PART_BYTES} bytes.")
            kept.write(block)
        if str(size) != request.headers.get("Content-Length", str(size)):
            raise ApiError("The part did not come whole.", http_status=408)
        kept.flush()
    except BaseException:
        kept.close()
        raise
    kept.size = size
    return kept


@page(Right.OPERATE, methods=("POST",))
def complete(request: HttpRequest, upload_id: str) -> HttpResponseBase:
    """Join the parts; the body is JSON with part_ids."""
    upload = get_object_or_404(Upload.objects.select_related("project", "file"), pk=upload_id)
    try:
        body: Any = json.loads(request.body)
        file_id = str(parts.complete(upload, body).file_id)
    except ValueError:
        return json_error(ApiError("The body is no JSON."))
    except ApiError as error:
        return json_error(error)
    return JsonResponse({"file": file_id, "next": reverse("console:describe_batch", args=[file_id])})
