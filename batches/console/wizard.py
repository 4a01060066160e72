"""From a file to a batch in three steps: choose, check and describe, confirm."""

import hashlib
import json
import secrets
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse

from batches import creation
from batches.console import checking
from batches.console.results import turns
from batches.models import Batch
from batches.states import TERMINAL
from batches.validation import ENDPOINTS
from files.console.pages import ends, find
from files.models import File, Purpose
from files.uploads import MAX_BATCH_FILE_BYTES
from vbatch_site.console.pages import back, error_text, page, say, show
from vbatch_site.console.roles import Right, may
from vbatch_site.console.tables import Query, newest_first
from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError, Json
from vbatch_site.openai.idempotency import Claim

_FILES_OFFERED = 20
_EARLIER_OFFERED = 30


@page(Right.OPERATE)
def choose(request: HttpRequest) -> HttpResponse:
    """Offer an upload, and the files that are there already."""
    query = Query(request, "before")
    rows = File.objects.filter(deleted_at=None, purpose=Purpose.BATCH).select_related("project")
    context = {
        "title": "New batch",
        "step": 1,
        "projects": Project.objects.filter(deleted_at=None),
        "default_project": Project.default().pk,
        "files": newest_first(rows, query, _FILES_OFFERED),
        "largest": MAX_BATCH_FILE_BYTES,
    }
    return show(request, "console/batches/new.html", context)


@page(Right.OPERATE)
def describe(request: HttpRequest, file_id: str) -> HttpResponse:
    """Show what is in a file, and ask for the rest of the batch."""
    file = find(file_id)
    values = {
        "endpoint": creation.first_url(file) or ENDPOINTS[0],
        "completion_window": settings.VBATCH_COMPLETION_WINDOWS[0],
        "on_invalid_line": "fail",
        "priority": "0",
        "continue_from": request.GET.get("continue_from", "")[:64],
    }
    return _form(request, file, values)


def _form(request: HttpRequest, file: File, values: dict[str, Any], error: str = "", status: int = 200) -> HttpResponse:
    head, _ = ends(file) if may(request.user, Right.PROMPTS) else ([], [])
    earlier = Batch.objects.filter(project=file.project_id, status__in=TERMINAL).exclude(status="failed")
    context = {
        "title": "New batch",
        "step": 2,
        "file": file,
        "values": values,
        "error": error,
        "endpoints": ENDPOINTS,
        "windows": settings.VBATCH_COMPLETION_WINDOWS,
        "earlier": earlier.order_by("-created_at")[:_EARLIER_OFFERED],
        "rows": [_row(text) for text in head],
    }
    return show(request, "console/batches/new_describe.html", context, status=status)


def _row(text: str) -> dict[str, Any]:
    """Return one line of a file for reading: who says what, or the line as it is."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return {"text": text}
    said = turns(line)
    if not isinstance(line, dict) or not said:
        return {"text": text}
    body = line.get("body")
    model = body.get("model", "") if isinstance(body, dict) else ""
    return {"custom_id": line.get("custom_id", ""), "model": model, "url": line.get("url", ""), "turns": said}


@page(Right.OPERATE)
def check(request: HttpRequest, file_id: str) -> HttpResponse:
    """Run the checks of a batch on a file without creating one."""
    file = find(file_id)
    context = {"file": file, **checking.report(file, request.GET)}
    return show(request, "console/batches/_check.html", context, part="console/batches/_check.html")


def read_form(form: Any, file_id: str) -> Json:
    """Return the request that a form stands for, as the API takes it; raise ApiError."""
    body: Json = {
        "input_file_id": file_id,
        "endpoint": form.get("endpoint"),
        "completion_window": form.get("completion_window"),
    }
    if metadata := _metadata(form.get("metadata", "")):
        body["metadata"] = metadata
    if (priority := form.get("priority", "").strip()) not in ("", "0"):
        if not priority.removeprefix("-").isdecimal():
            raise ApiError("The priority is a whole number from -100 to 100.", param="priority")
        body["priority"] = int(priority)
    if form.get("on_invalid_line") not in (None, "", "fail"):
        body["on_invalid_line"] = form["on_invalid_line"]
    if form.get("allow_mixed_models"):
        body["allow_mixed_models"] = True
    if form.get("continue_from"):
        body["continue_from"] = form["continue_from"]
    if url := form.get("webhook", "").strip():
        body["webhook"] = {"url": url}
    return body


def _metadata(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if not line.strip():
            continue
        if not equals or not key.strip():
            raise ApiError(f"Metadata is one key=value a line; this is none: {line[:100]}", param="metadata")
        found[key.strip()] = value.strip()
    return found


@page(Right.OPERATE, methods=("POST",))
def confirm(request: HttpRequest, file_id: str) -> HttpResponseBase:
    """Show what is about to be created, or create it; a mistake keeps the form."""
    file = find(file_id)
    form = request.POST
    try:
        body = read_form(form, file.pk)
        creation.read(file.project, body)
        if form.get("create"):
            batch = creation.create(file.project, body, _claim(file, form.get("once", ""), body), by=str(request.user))
            say(request, "The batch is created.")
            return back(request, reverse("console:batch", args=[batch.pk]))
    except ApiError as error:
        return _form(request, file, form.dict(), error_text(error), status=422)
    context = {
        "title": "New batch",
        "step": 3,
        "file": file,
        "body": body,
        "values": form.dict(),
        "once": secrets.token_hex(16),
        "curl": _curl(request, body),
        "python": _python(request, body),
    }
    return show(request, "console/batches/new_confirm.html", context)


def _claim(file: File, once: str, body: Json) -> Claim | None:
    """Return what makes a second click answer with the first one's batch."""
    if not once.isalnum() or len(once) > 64:
        return None
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return Claim(file.project, f"console-{once}", digest)


def _curl(request: HttpRequest, body: Json) -> str:
    text = json.dumps(body, indent=2, ensure_ascii=False).replace("'", "'\\''")
    url = request.build_absolute_uri("/v1/batches")
    return f'curl {url} \\\n  -H "Authorization: Bearer $KEY" -H "Content-Type: application/json" \\\n  -d \'{text}\''


_OFFICIAL = ("input_file_id", "endpoint", "completion_window", "metadata")


def _python(request: HttpRequest, body: Json) -> str:
    arguments = [f"    {name}={body[name]!r}," for name in _OFFICIAL if name in body]
    if more := {name: value for name, value in body.items() if name not in _OFFICIAL}:
        arguments.append(f"    extra_body={more!r},")
    url = request.build_absolute_uri("/v1")
    return "\n".join(
        [
            "from openai import OpenAI",
            "",
            f'client = OpenAI(base_url="{url}", api_key="sk-vb-...")',
            "batch = client.batches.create(",
            *arguments,
            ")",
        ]
    )
