"""The list of batches: active ones first, cheap with a hundred thousand of them."""

import csv
from collections.abc import Iterator
from datetime import datetime, time
from typing import Any

from django.db.models import Count, QuerySet, TextField
from django.db.models.functions import Cast
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_date

from batches import steering
from batches.catalogue import known_models
from batches.console import pace
from batches.console.shown import decorate
from batches.models import Batch, StaleTransition
from batches.states import ACTIVE, TERMINAL, BatchStatus
from batches.validation import ENDPOINTS
from vbatch_site.console.pages import ACTIVE_SECONDS, back, complain, page, say, show
from vbatch_site.console.roles import Right
from vbatch_site.console.tables import Page, Query, newest_first
from vbatch_site.models import Project

_FILTERS = ("status", "model", "endpoint", "project", "failures", "from", "to", "q")
_LISTED_ACTIVE = 100  # before the ended ones; more are a filter away
_EXPORTED_ROWS = 10_000
_AT_ONCE = 500  # rows of one bulk action

_STATUSES = {
    "active": "Active",
    **{status.value: status.value.replace("_", " ").capitalize() for status in BatchStatus},
}


def filtered(query: Query) -> QuerySet[Batch]:
    """Return the batches that a list's filters leave."""
    rows = Batch.objects.select_related("project")
    status = query["status"]
    if status == "active":
        rows = rows.filter(status__in=ACTIVE)
    elif status in TERMINAL | ACTIVE:
        rows = rows.filter(status=status)
    for name in ("model", "endpoint"):
        if query[name]:
            rows = rows.filter(**{name: query[name]})
    if query["project"]:
        rows = rows.filter(project__name=query["project"])
    if query["failures"]:
        rows = rows.filter(failed__gt=0)
    for name, lookup, edge in (("from", "gte", time.min), ("to", "lte", time.max)):
        if day := _day(query[name]):
            moment = timezone.make_aware(datetime.combine(day, edge))
            rows = rows.filter(**{f"created_at__{lookup}": moment})
    return _named(rows, query["q"])


def _day(text: str) -> Any:
    try:
        return parse_date(text)
    except ValueError:
        return None


def _named(rows: QuerySet[Batch], text: str) -> QuerySet[Batch]:
    """Find an id by its beginning or its end, and anything else in the metadata."""
    if not text:
        return rows
    if text.startswith("batch_"):
        return rows.filter(pk__startswith=text)
    if text.startswith("file-"):
        return rows.filter(input_file_id=text)
    key, _, value = text.partition("=")
    if value:
        return rows.filter(metadata__contains={key.strip(): value.strip()})
    # Only what has metadata is searched, newest first, until a page is full.
    return rows.annotate(text=Cast("metadata", TextField())).filter(metadata__isnull=False, text__icontains=text)


def _counts() -> dict[str, int]:
    found = dict(Batch.objects.order_by().values_list("status").annotate(n=Count("pk")))
    return {"active": sum(found.get(status, 0) for status in ACTIVE), **found}


@page()
def batches(request: HttpRequest) -> HttpResponse:
    """List batches."""
    query = Query(request, *_FILTERS, "before")
    rows = filtered(query)
    if query["status"]:
        listed = newest_first(rows, query)
    else:
        listed = newest_first(rows.filter(status__in=TERMINAL), query)
        if "before" not in query:
            active = list(rows.filter(status__in=ACTIVE).order_by("-created_at", "-pk")[:_LISTED_ACTIVE])
            listed = Page([*active, *listed.rows], listed.older, listed.newest)
    for batch in listed.rows:
        decorate(batch)
    pace.add(listed.rows)
    counts = _counts()
    choices = query.choices("status", {name: _STATUSES[name] for name in _STATUSES if counts.get(name)}, counts)
    # "All" is every row once; "active" is the sum of four of them.
    choices[0] = choices[0].__class__("", "All", sum(counts.values()) - counts["active"], choices[0].url, choices[0].on)
    context = {
        "title": "Batches",
        "query": query,
        "page": listed,
        "choices": choices,
        "models": sorted(known_models()),
        "endpoints": ENDPOINTS,
        "projects": Project.objects.values_list("name", flat=True),
        "is_live": any(batch.active for batch in listed.rows) and "before" not in query,
        "any_active": any(batch.active for batch in listed.rows),
        "seconds": ACTIVE_SECONDS,
        "export_url": query.url.replace(query.path, reverse("console:export_batches"), 1),
    }
    return show(request, "console/batches/list.html", context, part="console/batches/_list.html")


class _Echo:
    def write(self, text: str) -> str:
        """Hand the line on."""
        return text


@page(compress=False)
def export(request: HttpRequest) -> HttpResponseBase:
    """Send the filtered list as CSV."""
    rows = filtered(Query(request, *_FILTERS)).order_by("-created_at", "-pk")[:_EXPORTED_ROWS]
    names = ["id", "status", "model", "endpoint", "project", "total", "completed", "failed"]
    names += ["input_tokens", "output_tokens", "created_at", "in_progress_at", "expires_at", "input_file_id"]
    writer = csv.writer(_Echo())

    def lines() -> Iterator[str]:
        yield writer.writerow(names)
        for batch in rows.iterator(500):
            yield writer.writerow([_safe(getattr(batch, name)) for name in names])

    response = StreamingHttpResponse(lines(), content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = 'attachment; filename="batches.csv"'
    return response


def _safe(value: Any) -> Any:
    """Keep a spreadsheet from running a name as a formula."""
    value = value.isoformat() if isinstance(value, datetime) else str(value) if value is not None else ""
    return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value


@page(Right.OPERATE, methods=("POST",))
def bulk_cancel(request: HttpRequest) -> HttpResponseBase:
    """Cancel the selected batches that can still be cancelled."""
    cancelled = late = 0
    for batch in Batch.objects.filter(pk__in=request.POST.getlist("batch")[:_AT_ONCE]):
        try:
            steering.cancel(batch, by=f"{request.user}")
            cancelled += 1
        except StaleTransition:
            late += 1
    say(request, f"{cancelled} batches are being cancelled.")
    if late:
        complain(request, f"{late} had ended or were ending already.")
    return back(request, reverse("console:batches"))
