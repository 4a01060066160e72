"""Files: the list, one of them with its head and its tail, download and deletion."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils import timezone

from files import deletion, storage
from files.jsonl import iter_lines
from files.models import File, Purpose
from files.views import content_response
from vbatch_site.console.pages import back, complain, page, say, show
from vbatch_site.console.roles import Right, may
from vbatch_site.console.tables import Query, bounded_counts, newest_first
from vbatch_site.models import Project
from vbatch_site.words import search

_HEAD_BYTES = 64 << 10  # read of each end for the page
_SHOWN_LINES = 5
_SHOWN_CHARACTERS = 2000  # of one line
_LINE_CHARACTERS = 200_000  # of the one line that was asked for
_REACH = 2000  # files that are asked for who reads them, for one page
_BLOCK = 4 << 20  # bytes read at a time to count lines

_PURPOSES = {"batch": "Batch input", "batch_output": "Batch output", "other": "Other"}
_USES = {"yes": "Read by a batch", "no": "Read by none"}

_NOT_GONE = "deleted_at IS NULL AND (expires_at IS NULL OR expires_at > now())"


@dataclass(frozen=True, slots=True)
class Use:
    """Something that needs a file."""

    label: str
    url: str
    active: bool


# The batches room knows what uses a file, and says so at start; imports point the other way.
_users: list[Callable[[str], Iterable[Use]]] = []
_counters: list[Callable[[list[str]], dict[str, int]]] = []
_narrowers: list[Callable[[Any, bool], Any]] = []


def add_user(
    find: Callable[[str], Iterable[Use]],
    count: Callable[[list[str]], dict[str, int]],
    narrow: Callable[[Any, bool], Any],
) -> None:
    """Name functions that know what uses a file, count that for many, and leave the used or the unused of a query."""
    _users.append(find)
    _counters.append(count)
    _narrowers.append(narrow)


def _uses(file_id: str) -> list[Use]:
    return [use for find in _users for use in find(file_id)]


def _not_gone() -> Any:
    now = timezone.now()
    return File.objects.filter(deleted_at=None).filter(Q(expires_at=None) | Q(expires_at__gt=now))


def _counts() -> dict[str, int]:
    found = bounded_counts("files_file", {"purpose": Purpose.values}, _NOT_GONE)["purpose"]
    other = sum(n for name, n in found.items() if name not in _PURPOSES)
    return {name: found.get(name, other) for name in _PURPOSES}


@page()
def files(request: HttpRequest) -> HttpResponse:
    """List files of all projects."""
    query = Query(request, "purpose", "project", "used", "q", "before")
    rows = _not_gone().select_related("project", "api_key")
    if query["purpose"] == "other":
        rows = rows.filter(purpose__in=[purpose for purpose in Purpose.values if purpose not in _PURPOSES])
    elif query["purpose"]:
        rows = rows.filter(purpose=query["purpose"])
    if query["project"]:
        # By its id, which an index has beside the time.
        rows = rows.filter(
            project_id=Project.objects.filter(name=query["project"]).values_list("pk", flat=True).first() or 0
        )
    if query["used"] in _USES:
        for narrow in _narrowers:
            rows = narrow(rows, query["used"] == "yes")
    if text := query["q"]:
        rows = rows.filter(pk__startswith=text) if text.startswith("file-") else search(rows, "filename", text)
    by_words = bool(text) and not text.startswith("file-")
    reach = _REACH if query["used"] in _USES else None
    listed = newest_first(rows, query, by_words=by_words, reach=reach)
    used: dict[str, int] = {}
    for count in _counters:
        for pk, n in count([file.pk for file in listed.rows]).items():
            used[pk] = used.get(pk, 0) + n
    for file in listed.rows:
        file.used = used.get(file.pk, 0)
    counts = _counts() if query.only("purpose") else None
    context = {
        "title": "Files",
        "query": query,
        "page": listed,
        "choices": query.choices("purpose", _PURPOSES, counts, bounded=True),
        "uses": _USES,
        "reach": reach,
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
    _count_lines(file)
    uses = _uses(file.pk)
    sees = may(request.user, Right.PROMPTS)
    head, tail = ends(file) if sees else ([], [])
    wanted = request.GET.get("line", "")
    number = int(wanted) if wanted.isdecimal() and len(wanted) < 9 else 0
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


def _count_lines(file: File) -> None:
    """Count a file's lines when nothing did before: 200 MB take a tenth of a second, once."""
    if file.lines is not None:
        return
    last, count = b"", 0
    try:
        with storage.opened(file.path) as stream:
            while block := stream.read(_BLOCK):
                count += block.count(b"\n")
                last = block[-1:]
    except FileNotFoundError:
        return
    file.lines = count + (last not in (b"", b"\n"))
    File.objects.filter(pk=file.pk).update(lines=file.lines)


def _line(file: File, number: int) -> str | None:
    """Return one line of a file, None where there is none; what lies before it is read, and not kept."""
    try:
        with storage.opened(file.path) as stream:
            for at, _, raw in iter_lines(stream):
                if at >= number:
                    return "" if at > number else (raw or b"").decode("utf-8", "replace")[:_LINE_CHARACTERS]
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
    deletion.delete(file)
    say(request, f"{file.filename} is deleted.")
    return back(request, reverse("console:files"))
