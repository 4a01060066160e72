"""Lists: filters and pages that live in the URL, and cost the same on page one and on page one thousand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.db import connection
from django.db.models import F, Q, QuerySet, Value
from django.http import HttpRequest
from django.utils import timezone
from django.utils.dateparse import parse_datetime

PAGE_ROWS = 50
MAX_TEXT = 200  # characters of a search
MOST_COUNTED = 1000  # rows for one number of a filter; where there are more, the page says so


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


def newest_first(rows: QuerySet[Any], query: Query, size: int = PAGE_ROWS, *, by_words: bool = False) -> Page:
    """Return a page of rows that have `created_at` and an id; the cursor is a place in the index, not a number.

    Those that are found by words are sorted after they are found: the planner takes words for more frequent than they
    are, and would look for them in all rows, in the order of time.
    """
    if "before" in query:
        at, _, key = query["before"].partition("~")
        if (moment := parse_datetime(at)) and timezone.is_aware(moment):
            rows = rows.filter(Q(created_at__lt=moment) | Q(created_at=moment, pk__lt=key), created_at__lte=moment)
    moment_of: Any = F("created_at") + Value(timedelta(0)) if by_words else F("created_at")
    found = list(rows.order_by(moment_of.desc(), "-pk")[: size + 1])
    older = None
    if len(found) > size:
        last = found[size - 1]
        older = query.at(before=f"{last.created_at.isoformat()}~{last.pk}")
    return Page(found[:size], older, query.at() if "before" in query else None)
