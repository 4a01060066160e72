"""Lists: filters and pages that live in the URL, and cost the same on page one and on page one thousand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.db import connection
from django.db.models import F, Q, QuerySet, Value
from django.http import HttpRequest
from django.utils import timezone
from django.utils.dateparse import parse_datetime

PAGE_ROWS = 25
MAX_TEXT = 200  # characters of a search
MOST_COUNTED = 1000  # rows for one number of a filter; where there are more, the page says so
_NEAR = 2000  # newest rows that are looked through one by one for frequent words


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a filter."""

    value: str
    label: str
    count: int | None
    url: str
    on: bool
    more: bool = False  # than the count


class Query:
    """A list's state as its URL has it; unknown and empty parameters are left out."""

    def __init__(self, request: HttpRequest, *names: str) -> None:
        self.path = request.path
        self._names = names
        found = {name: request.GET.get(name, "").replace("\0", "").strip()[:MAX_TEXT] for name in names}
        self.values = {name: value for name, value in found.items() if value}

    def __getitem__(self, name: str) -> str:
        # Templates ask for items before they ask for attributes.
        if name not in self._names:
            raise KeyError(name)
        return self.values.get(name, "")

    def __contains__(self, name: str) -> bool:
        return name in self.values

    @property
    def filtered(self) -> bool:
        """Whether anything but the place in the list is chosen."""
        return any(name not in ("before", "page", "sort") for name in self.values)

    @property
    def url(self) -> str:
        """This list at this state."""
        return self.at()

    def at(self, **changes: str) -> str:
        """Return the URL with some parameters changed, empty ones left out; another filter starts at its top."""
        values = {k: v for k, v in self.values.items() if k not in ("before", "page")} | changes
        text = urlencode({k: v for k, v in values.items() if v})
        return f"{self.path}?{text}" if text else self.path

    def only(self, name: str) -> bool:
        """Whether nothing else is chosen but a place in the list: then plain counts are what a link leads to."""
        return not self.values.keys() - {name, "before", "page", "sort"}

    def choices(
        self, name: str, options: dict[str, str], counts: dict[str, int] | None = None, *, bounded: bool = False
    ) -> list[Choice]:
        """Return the values of one filter, "all" first; counts may be missing, or be those of `bounded_counts`."""
        wanted = {"": "All", **options}
        known = {**counts, "": counts.get("", sum(counts.values()))} if counts is not None else {}
        rows = []
        for value, label in wanted.items():
            count = known.get(value, 0) if counts is not None else None
            more = bounded and count is not None and count > MOST_COUNTED
            url, on = self.at(**{name: value}), self[name] == value
            rows.append(Choice(value, label, MOST_COUNTED if more else count, url, on, more))
        return rows


def bounded_counts(table: str, wanted: Mapping[str, Sequence[Any]], where: str = "true") -> dict[str, dict[Any, int]]:
    """Return how many rows have each of some values of columns, MOST_COUNTED + 1 for all that is more.

    The columns have an index with the time after them. One query; it reads at most a thousand entries of an index for
    a value, however large the table is. The names and the condition are our own text.
    """
    asked = [(column, value) for column, values in wanted.items() for value in values]
    # A query of its own for each value, because the planner then knows which ones are rare.
    parts = [
        f"SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {column} = %s AND {where}"  # noqa: S608
        f" ORDER BY created_at DESC LIMIT {MOST_COUNTED + 1}) few"
        for column, _ in asked
    ]
    counts: Sequence[int] = ()
    if parts:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {', '.join(f'({part})' for part in parts)}", [value for _, value in asked])
            counts = cursor.fetchone()
    found: dict[str, dict[Any, int]] = {column: {} for column in wanted}
    for (column, value), count in zip(asked, counts, strict=True):
        found[column][value] = count
    return found


def counted(name: str, count: int | None) -> str:
    """Return an option's text with its count, as `bounded_counts` has it."""
    if count is None:
        return name
    return f"{name} ({MOST_COUNTED:,}+)" if count > MOST_COUNTED else f"{name} ({count:,})"


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list, newest first, and the way to the next ones."""

    rows: list[Any]
    older: str | None
    newest: str | None

    def __bool__(self) -> bool:
        return bool(self.rows)


def newest_first(
    rows: QuerySet[Any], query: Query, size: int = PAGE_ROWS, *, by_words: bool = False, reach: int | None = None
) -> Page:
    """Return a page of rows that have `created_at` and an id; the cursor is a place in the index, not a number.

    Args:
        rows: All that may be listed.
        query: Its "before" is the place.
        size: Rows of a page.
        by_words: Rows are found by words. The planner does not know how frequent one is. Frequent ones fill the page
            from the newest rows; rare ones are few enough to be sorted after their index has found them.
        reach: For filters that have no index: how many rows are looked at, of which a page may be none. What is
            older is a page further then.
    """
    if moment := _place(query):
        key = query["before"].partition("~")[2]
        rows = rows.filter(Q(created_at__lt=moment) | Q(created_at=moment, pk__lt=key), created_at__lte=moment)
    edge = None
    if reach or by_words:
        edge = _edge(rows.model, query, reach or _NEAR)
    near = rows if edge is None else rows.filter(created_at__gte=edge)
    found = list(near.order_by("-created_at", "-pk")[: size + 1])
    if by_words and edge is not None and len(found) <= size:
        # An expression has no index: the words' own is all that the planner can take.
        moment_of = F("created_at") + Value(timedelta(0))
        # Their keys are sorted, and not all that is shown of them.
        keys = list(rows.order_by(moment_of.desc(), "-pk").values_list("pk", flat=True)[: size + 1])
        found = list(rows.filter(pk__in=keys).order_by("-created_at", "-pk"))
    older = None
    if len(found) > size:
        last = found[size - 1]
        older = query.at(before=f"{last.created_at.isoformat()}~{last.pk}")
    elif reach and edge is not None:
        # No id comes before the empty one, so all rows of the edge's own moment are behind.
        older = query.at(before=f"{edge.isoformat()}~")
    return Page(found[:size], older, query.at() if "before" in query else None)


def _place(query: Query) -> datetime | None:
    """Return the moment that a list goes on from; None at its top, and for what is no moment."""
    try:
        moment = parse_datetime(query["before"].partition("~")[0])
    except ValueError:
        return None
    return moment if moment and timezone.is_aware(moment) else None


def _edge(model: Any, query: Query, count: int) -> datetime | None:
    """Return when the row was created that is so many rows behind a list's place; None where there are fewer."""
    rows = model._default_manager.order_by("-created_at", "-pk")
    if moment := _place(query):
        rows = rows.filter(created_at__lte=moment)
    found: datetime | None = rows.values_list("created_at", flat=True)[count : count + 1].first()
    return found
