"""Files: the list, one of them with its head and its tail, download and deletion."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from files import storage
from files.jsonl import iter_lines
from files.models import File, Purpose
from files.views import content_response
from vbatch_site.console.pages import back, complain, page, say, show
from vbatch_site.console.roles import Right, may
from vbatch_site.console.tables import Query, newest_first
from vbatch_site.models import Project

_HEAD_BYTES = 64 << 10  # read of each end for the page
_SHOWN_LINES = 5
_SHOWN_CHARACTERS = 2000  # of one line
_LINE_CHARACTERS = 200_000  # of the one line that was asked for

_PURPOSES = {"batch": "Batch input", "batch_output": "Batch output", "other": "Other"}


@dataclass(frozen=True, slots=True)
class Use:
    """Something that needs a file."""

    label: str
    url: str
    active: bool


# The batches room knows what uses a file, and says so at start; imports point the other way.
_users: list[Callable[[str], Iterable[Use]]] = []
_counters: list[Callable[[list[str]], dict[str, int]]] = []


def add_user(find: Callable[[str], Iterable[Use]], count: Callable[[list[str]], dict[str, int]]) -> None:
    """Name a function that knows what uses a file, and one that counts that for many."""
    _users.append(find)
    _counters.append(count)


def _uses(file_id: str) -> list[Use]:
    return [use for find in _users for use in find(file_id)]


def _not_gone() -> Any:
    now = timezone.now()
    return File.objects.filter(deleted_at=None).filter(Q(expires_at=None) | Q(expires_at__gt=now))


@page()
def files(request: HttpRequest) -> HttpResponse:
    """List files of all projects."""
    query = Query(request, "purpose", "project", "q", "before")
    rows = _not_gone().select_related("project")
    if query["purpose"] == "other":
        rows = rows.exclude(purpose__in=[Purpose.BATCH, Purpose.BATCH_OUTPUT])
    elif query["purpose"]:
        rows = rows.filter(purpose=query["purpose"])
    if query["project"]:
        rows = rows.filter(project__name=query["project"])
    if text := query["q"]:
        rows = rows.filter(pk__startswith=text) if text.startswith("file-") else rows.filter(filename__icontains=text)
    listed = newest_first(rows, query)
    used: dict[str, int] = {}
    for count in _counters:
        for pk, n in count([file.pk for file in listed.rows]).items():
            used[pk] = used.get(pk, 0) + n
    for file in listed.rows:
        file.used = used.get(file.pk, 0)
    counts = dict(_not_gone().order_by().values_list("purpose").annotate(n=Count("pk")))
    own = {name: counts.get(name, 0) for name in ("batch", "batch_output")}
    context = {
        "title": "Files",
        "query": query,
        "page": listed,
        "choices": query.choices("purpose", _PURPOSES, {**own, "other": sum(counts.values()) - sum(own.values())}),
        "projects": Project.objects.values_list("name", flat=True),
    }
    return show(request, "console/files/list.html", context, part="console/files/_list.html")


def find(file_id: str) -> File:
    """Return a file of any project that is neither deleted nor expired, or raise the 404."""
    file: File = get_object_or_404(_not_gone().select_related("project"), pk=file_id.replace("\0", ""))
    return file


@page()
def detail(request: HttpRequest, file_id: str) -> HttpResponse:
    """Show a file; its text only to those who may see prompts."""
    file = find(file_id)
    uses = _uses(file.pk)
    sees = may(request.user, Right.PROMPTS)
    head, tail = ends(file) if sees else ([], [])
    wanted = request.GET.get("line", "")
    number = int(wanted) if wanted.isdigit() and len(wanted) < 9 else 0
    needed = [use for use in uses if use.active]
    context = {
        "title": file.filename,
        "file": file,
        "uses": uses,
        "head": head,
        "tail": tail,
        "number": number or None,
        "line": _line(file, number) if sees and number else None,
        "sees": sees,
        "refusal": f"{len(needed)} running batches read it." if needed else "",
    }
    return show(request, "console/files/detail.html", context)


def ends(file: File) -> tuple[list[str], list[str]]:
    """Return the first and the last lines of a file, cut, without reading what lies between."""
    try:
        with storage.opened(file.path) as stream:
            head = stream.read(_HEAD_BYTES).split(b"\n")
            if file.bytes <= _HEAD_BYTES:
                lines = [line for line in head if line.strip()]
                last = lines[max(_SHOWN_LINES, len(lines) - _SHOWN_LINES) :]
                return _text(lines[:_SHOWN_LINES]), _text(last)
            stream.seek(file.bytes - _HEAD_BYTES)
            tail = stream.read(_HEAD_BYTES).split(b"\n")
    except (FileNotFoundError, ValueError):
        return [], []
    whole = [line for line in tail[1:] if line.strip()] or tail[:1]
    return _text(head[:_SHOWN_LINES]), _text(whole[-_SHOWN_LINES:])


def _line(file: File, number: int) -> str | None:
    """Return one line of a file, None where there is none; what lies before it is read, and not kept."""
    try:
        with storage.opened(file.path) as stream:
            for at, _, raw in iter_lines(stream):
                if at == number:
                    return (raw or b"").decode("utf-8", "replace")[:_LINE_CHARACTERS]
    except FileNotFoundError:
        pass
    return None


def _text(lines: list[bytes]) -> list[str]:
    return [line.decode("utf-8", "replace")[:_SHOWN_CHARACTERS] for line in lines]


@page(Right.PROMPTS, compress=False)
def download(request: HttpRequest, file_id: str) -> HttpResponseBase:
    """Send a file's bytes."""
    return content_response(find(file_id))


@page(Right.OPERATE, methods=("POST",))
def delete(request: HttpRequest, file_id: str) -> HttpResponseBase:
    """Delete a file that no running batch reads."""
    file = find(file_id)
    if any(use.active for use in _uses(file.pk)):
        complain(request, f"{file.filename} is read by a running batch.")
        return back(request, reverse("console:file", args=[file.pk]))
    File.objects.filter(pk=file.pk, deleted_at=None).update(deleted_at=timezone.now())
    say(request, f"{file.filename} is deleted.")
    return back(request, reverse("console:files"))
