"""Lists: filters and pages that live in the URL, and cost the same on page one and on page one thousand."""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.dateparse import parse_datetime

PAGE_ROWS = 50
MAX_TEXT = 200  # characters of a search


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a filter."""

    value: str
    label: str
    count: int | None
    url: str
    on: bool


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

    def choices(self, name: str, options: dict[str, str], counts: dict[str, int] | None = None) -> list[Choice]:
        """Return the values of one filter, "all" first; counts may be missing where they would be dear."""
        rows = [Choice("", "All", sum(counts.values()) if counts else None, self.at(**{name: ""}), name not in self)]
        for value, label in options.items():
            count = None if counts is None else counts.get(value, 0)
            rows.append(Choice(value, label, count, self.at(**{name: value}), self[name] == value))
        return rows


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a list, newest first, and the way to the next ones."""

    rows: list[Any]
    older: str | None
    newest: str | None

    def __bool__(self) -> bool:
        return bool(self.rows)


def newest_first(rows: QuerySet[Any], query: Query, size: int = PAGE_ROWS) -> Page:
    """Return a page of rows that have `created_at` and an id; the cursor is a place in the index, not a number."""
    if "before" in query:
        at, _, key = query["before"].partition("~")
        if (moment := parse_datetime(at)) and timezone.is_aware(moment):
            rows = rows.filter(Q(created_at__lt=moment) | Q(created_at=moment, pk__lt=key), created_at__lte=moment)
    found = list(rows.order_by("-created_at", "-pk")[: size + 1])
    older = None
    if len(found) > size:
        last = found[size - 1]
        older = query.at(before=f"{last.created_at.isoformat()}~{last.pk}")
    return Page(found[:size], older, query.at() if "before" in query else None)
