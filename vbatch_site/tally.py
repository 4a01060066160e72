"""Counters that only grow, kept as rows: whichever process of whichever host is asked, it tells the same.

Counting is an INSERT and never an UPDATE, so that workers that count the same thing do not wait for each other. The
sweep folds the rows of one counter into one. Call `count` in the transaction that makes it so.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from django.db import connection, transaction

from vbatch_site.models import Tally

FOLD_ABOVE = 5000  # rows beyond one a counter, about a megabyte: reading them takes a few milliseconds

_COLUMNS = "name, project_id, model, label"
_TABLE = Tally._meta.db_table
_ADD = f"""
    INSERT INTO {_TABLE} ({_COLUMNS}, value)
    SELECT * FROM unnest(%s::text[], %s::bigint[], %s::text[], %s::text[], %s::float8[])
"""  # noqa: S608 (our own names)
_SURPLUS = f"SELECT count(*) - count(DISTINCT ({_COLUMNS})) FROM {_TABLE}"  # noqa: S608
# One statement: who folds at the same time finds the rows gone, and what is added meanwhile is not touched.
_FOLD = f"""
    WITH gone AS (DELETE FROM {_TABLE} RETURNING {_COLUMNS}, value)
    INSERT INTO {_TABLE} ({_COLUMNS}, value) SELECT {_COLUMNS}, sum(value) FROM gone GROUP BY {_COLUMNS}
"""  # noqa: S608
_TOTALS = f"SELECT {_COLUMNS}, sum(value) FROM {_TABLE} GROUP BY {_COLUMNS} ORDER BY {_COLUMNS}"  # noqa: S608


class Counter(NamedTuple):
    """One counter: what it counts, of which project (0: of none) and model, and what tells it apart further.

    The label's parts are joined with spaces.
    """

    name: str
    project_id: int = 0
    model: str = ""
    label: str = ""


def count(added: Mapping[Counter, float]) -> None:
    """Add to counters; nothing is written for zeros."""
    rows = [(*counter, float(value)) for counter, value in added.items() if value]
    if rows:
        with connection.cursor() as cursor:
            cursor.execute(_ADD, [list(column) for column in zip(*rows, strict=True)])


def totals() -> dict[str, list[tuple[Counter, float]]]:
    """Return all counters by name."""
    found: dict[str, list[tuple[Counter, float]]] = defaultdict(list)
    with connection.cursor() as cursor:
        cursor.execute(_TOTALS)
        for *columns, value in cursor.fetchall():
            found[columns[0]].append((Counter(*columns), value))
    return found


def fold() -> None:
    """Make one row of each counter's rows when they have become many."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(_SURPLUS)
        if cursor.fetchone()[0] > FOLD_ABOVE:
            cursor.execute(_FOLD)
