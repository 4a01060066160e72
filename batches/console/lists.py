"""The list of batches: active ones first, cheap with a hundred thousand of them."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any

from django.db.models import Q, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.urls import reverse
from django.utils import timezone
from django.utils.dateparse import parse_date

from batches import retrying, steering
from batches.catalogue import known_models
from batches.console import pace
from batches.console.shown import decorate
from batches.models import Batch, Shard, StaleTransition
from batches.states import ACTIVE, TERMINAL, BatchStatus, ShardState
from batches.validation import ENDPOINTS
from vbatch_site.console.pages import ACTIVE_SECONDS, back, complain, error_text, page, say, show
from vbatch_site.console.roles import Right
from vbatch_site.console.tables import Choice, Page, Query, bounded_counts, counted, newest_first
from vbatch_site.models import ApiKey, Project
from vbatch_site.openai.errors import ApiError
from vbatch_site.words import search

_FILTERS = ("status", "model", "endpoint", "project", "key", "failures", "from", "to", "q", "only")
_LISTED_ACTIVE = 100  # before the ended ones; more are a filter away
_EXPORTED_ROWS = 10_000
_AT_ONCE = 500  # rows of one bulk action
_KEYS_OFFERED = 100
_HOUR = timedelta(hours=1)
_DAY = timedelta(hours=24)

_STATUSES = {
    "active": "Active",
    **{status.value: status.value.replace("_", " ").capitalize() for status in BatchStatus},
}

_IDS = ("batch_", "file-")
_BEGUN = Q(completed__gt=0) | Q(failed__gt=0)


def narrowed(name: str) -> QuerySet[Batch]:
    """Return the batches that a tile of the dashboard counts; all of them for a name that is none."""
    now = timezone.now()
    questions = {
        "running": Q(_BEGUN, status=BatchStatus.IN_PROGRESS),
        "queued": Q(status=BatchStatus.VALIDATING) | Q(~_BEGUN, status=BatchStatus.IN_PROGRESS),
        "expiring": Q(status__in=ACTIVE, expires_at__lte=now + _HOUR),
        # Whoever fails does so in validation, soon after its creation, which the index has.
        "failed": Q(status=BatchStatus.FAILED, failed_at__gte=now - _DAY, created_at__gte=now - 7 * _DAY),
    }
    return Batch.objects.filter(questions.get(name, Q()))


def filtered(query: Query) -> QuerySet[Batch]:
    """Return the batches that a list's filters leave."""
    rows = narrowed(query["only"]).select_related("project", "api_key").defer("errors", "chosen_lines")
    status = query["status"]
    if status == "active":
        rows = rows.filter(status__in=ACTIVE)
    elif status in TERMINAL | ACTIVE:
        rows = rows.filter(status=status)
    for name in ("model", "endpoint"):
        if query[name]:
            rows = rows.filter(**{name: query[name]})
    if query["project"]:
        # By its id, which an index has beside the time.
        rows = rows.filter(
            project_id=Project.objects.filter(name=query["project"]).values_list("pk", flat=True).first() or 0
        )
    if query["key"].isdecimal():
        rows = rows.filter(api_key_id=min(int(query["key"]), 2**63 - 1))
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
    """Find an id by its beginning, and words and their beginnings in the metadata, or all of one of its pairs."""
    if not text:
        return rows
    if text.startswith("batch_"):
        return rows.filter(pk__startswith=text)
    if text.startswith("file-"):
        return rows.filter(input_file_id=text)
    key, _, value = text.partition("=")
    if value:
        return search(rows, "metadata", text).filter(metadata__contains={key.strip(): value.strip()})
    return search(rows, "metadata", text)


def _choices(query: Query) -> list[Choice]:
    """Return the states that there are batches in, with counts where these are what the links lead to."""
    found: dict[str, int] = bounded_counts("batches_batch", {"status": [s.value for s in BatchStatus]})["status"]
    found["active"] = sum(found[status] for status in ACTIVE)
    shown = {name: text for name, text in _STATUSES.items() if found[name] or query["status"] == name}
    # "active" is the sum of others.
    found[""] = sum(found.values()) - found["active"]
    return query.choices("status", shown, found if query.only("status") else None, bounded=True)


@dataclass(frozen=True, slots=True)
class Option:
    """One value of a filter that is chosen from a list."""

    value: str
    text: str
    on: bool


def _selects(query: Query) -> list[tuple[str, str, list[Option]]]:
    """Return the filters that are chosen from lists: parameter, label, values."""
    models = {name: name for name in sorted(known_models())}
    keys = {key.pk: f"{key.name} ({key.prefix}...)" for key in ApiKey.objects.order_by("-created_at")[:_KEYS_OFFERED]}
    projects = dict(Project.objects.values_list("pk", "name"))
    filters: list[tuple[str, str, str, dict[Any, str]]] = [
        ("model", "Model", "model", models),
        ("endpoint", "Endpoint", "endpoint", {name: name for name in ENDPOINTS}),
        ("key", "Key", "api_key_id", keys),
        ("project", "Project", "project_id", projects),
    ]
    shown = {column: list(options) for name, _, column, options in filters if query.only(name)}
    counts = bounded_counts("batches_batch", shown)
    found = []
    for name, label, column, options in filters:
        rows = []
        for value, text in options.items():
            # A project is named in the URL, whose reader may know no id.
            chosen = text if name == "project" else str(value)
            rows.append(Option(chosen, counted(text, counts.get(column, {}).get(value)), chosen == query[name]))
        found.append((name, label, rows))
    return found


def _add_workers(batches: Sequence[Batch]) -> None:
    """Add to batches which workers have lines of them."""
    running = [batch.pk for batch in batches if batch.status == BatchStatus.IN_PROGRESS]
    held: dict[str, set[str]] = {}
    if running:
        leases = Shard.objects.filter(batch__in=running, state=ShardState.LEASED, lease_expires_at__gt=Now())
        for pk, holder in leases.order_by().values_list("batch_id", "holder"):
            held.setdefault(pk, set()).add(holder)
    for batch in batches:
        shown: Any = batch
        shown.workers = sorted(held.get(batch.pk, ()))


@page()
def batches(request: HttpRequest) -> HttpResponse:
    """List batches."""
    query = Query(request, *_FILTERS, "before")
    rows = filtered(query)
    by_words = bool(query["q"]) and not query["q"].startswith(_IDS)
    if query["status"] or query["only"]:
        listed = newest_first(rows, query, by_words=by_words)
    else:
        listed = newest_first(rows.filter(status__in=TERMINAL), query, by_words=by_words)
        if "before" not in query:
            active = list(rows.filter(status__in=ACTIVE).order_by("-created_at", "-pk")[:_LISTED_ACTIVE])
            listed = Page([*active, *listed.rows], listed.older, listed.newest)
    for batch in listed.rows:
        decorate(batch)
    pace.add(listed.rows)
    _add_workers(listed.rows)
    context = {
        "title": "Batches",
        "query": query,
        "page": listed,
        "choices": _choices(query),
        # Not asked for by a poll, which shows the list alone.
        "selects": lambda: _selects(query),
        "is_live": any(batch.active for batch in listed.rows) and "before" not in query,
        "any_selectable": any(batch.may for batch in listed.rows),
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
    names = ["id", "status", "model", "endpoint", "project", "api_key", "created_by", "total", "completed", "failed"]
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


def _chosen(request: HttpRequest, name: str) -> QuerySet[Batch]:
    """Return the rows that were ticked for an action; each box is for the one action that its batch was shown with."""
    return Batch.objects.select_related("project").filter(pk__in=request.POST.getlist(name)[:_AT_ONCE])


@page(Right.OPERATE, methods=("POST",))
def bulk_cancel(request: HttpRequest) -> HttpResponseBase:
    """Cancel the selected batches that can still be cancelled."""
    cancelled = late = 0
    for batch in _chosen(request, "cancel"):
        try:
            steering.cancel(batch, by=f"{request.user}")
            cancelled += 1
        except StaleTransition:
            late += 1
    say(request, f"{cancelled} batches are being cancelled.")
    if late:
        complain(request, f"{late} had ended or were ending already.")
    return back(request, reverse("console:batches"))


@page(Right.OPERATE, methods=("POST",))
def bulk_retry(request: HttpRequest) -> HttpResponseBase:
    """Start a new batch for each selected one, over the lines that failed."""
    made, refusals = 0, Counter[str]()
    for batch in _chosen(request, "retry"):
        try:
            retrying.retry(batch, None, f"{request.user}")
            made += 1
        except StaleTransition:
            refusals[f"It is {batch.status.replace('_', ' ')}."] += 1
        except ApiError as error:
            refusals[error_text(error)] += 1
    say(request, f"{made} new batches run the lines that failed.")
    for text, n in refusals.most_common(3):
        complain(request, f"{n} refused: {text}")
    return back(request, reverse("console:batches"))
