"""Cursor paging: `after` and `limit` in, OpenAI's list envelope out."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from django.db.models import Model, Q, QuerySet
from django.http import QueryDict

from vbatch_site.openai.errors import ApiError, Json, check_bounds, not_supported

M = TypeVar("M", bound=Model)


def read_limit(query: QueryDict, default: int, maximum: int) -> int:
    """Return the page size, or raise ApiError."""
    text = query.get("limit")
    if text is None:
        return default
    # Long digit strings are refused before int() gets to spend time on them.
    if not re.fullmatch("-?[0-9]{1,19}", text):
        message = "Invalid type for 'limit': expected an integer, but got a string instead."
        raise ApiError(message, param="limit", code="invalid_type")
    limit = int(text)
    check_bounds("limit", limit, 1, maximum)
    return limit


def page(
    rows: QuerySet[M],
    owned: QuerySet[M],
    query: QueryDict,
    *,
    default: int,
    maximum: int,
    serialize: Callable[[Sequence[M]], Sequence[Mapping[str, Any]]],
    orderable: bool = False,
) -> Json:
    """Return one page, newest first unless `order=asc`; the id breaks ties, so that equal timestamps page exactly.

    `owned` is all that `after` may name: a row that was deleted while the client paged still marks its place.
    `serialize` gets the rows of the page together. An `after` outside it raises ApiError.
    """
    limit = read_limit(query, default, maximum)
    order = query.get("order", "desc") if orderable else "desc"
    if order not in ("asc", "desc"):
        raise not_supported("order", order, ["asc", "desc"])
    after = query.get("after", "")[:200].replace("\0", "")
    if after:
        cursor: Any = owned.filter(pk=after).values("created_at").first()
        if cursor is None:
            raise ApiError(f"Invalid 'after': no object found with id '{after}'.", param="after", code="invalid_value")
        at = cursor["created_at"]
        newer, older = (
            Q(created_at__gt=at) | Q(created_at=at, pk__gt=after),
            Q(created_at__lt=at) | Q(created_at=at, pk__lt=after),
        )
        rows = rows.filter(newer if order == "asc" else older)
    sign = "" if order == "asc" else "-"
    found = list(rows.order_by(f"{sign}created_at", f"{sign}pk")[: limit + 1])
    data = serialize(found[:limit])
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(found) > limit,
    }
