"""The database of every released version can be brought to the present schema, with all that it has."""

import os
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from vbatch_site import __version__
from vbatch_site.tests import releases
from vbatch_site.tests.servers import _admin, _manage, _url, new_database

DUMPS = sorted(releases.FOLDER.glob("*.sql"))

# Columns, indexes and rules by name; not the order of columns, which migrating adds at the end.
_SCHEMA = """
    SELECT 'column', table_name, column_name, data_type || is_nullable || coalesce(column_default, '')
      FROM information_schema.columns WHERE table_schema = 'public'
     UNION ALL SELECT 'index', tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
     UNION ALL SELECT 'rule', conrelid::regclass::text, conname, pg_get_constraintdef(oid)
      FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
     UNION ALL SELECT 'options', relname, '', array_to_string(reloptions, ',')
      FROM pg_class WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL
     ORDER BY 1, 2, 3, 4
"""
# The batch that was running goes on where it was.
_GO_ON = """
from datetime import timedelta
from batches import finalize, leases
from batches.models import Batch, Shard
from batches.outcome import Outcome
from vbatch_site.tests.servers import MODEL

Shard.objects.filter(state="leased").update(lease_expires_at="2020-01-01T00:00Z")
batch = Batch.objects.get(status="in_progress")
lease = leases.claim(batch.pk, MODEL, "another worker")
leases.commit([(lease, Outcome(batch.pk, line.number, "l", 200, "r", b"{}")) for line in lease.lines])
finalize.finalize(batch.pk)
batch.refresh_from_db()
print(len(lease.lines), batch.status, batch.total, batch.completed, batch.failed)
"""


def _schema(connection: "psycopg.Connection[Any]") -> set[tuple[str, ...]]:
    """Return what a database is made of; a condition that came from a dump is printed with other casts."""
    found = connection.execute(_SCHEMA).fetchall()
    return {(*names, re.sub(r"::(text|character varying)(\[\])?|[()]", "", text)) for *names, text in found}


def _rows(connection: "psycopg.Connection[Any]") -> dict[str, int]:
    """Return how many rows each table has."""
    names = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    count = sql.SQL("SELECT count(*) FROM {}")
    found = {}
    for (name,) in names:
        row = connection.execute(count.format(sql.Identifier(name))).fetchone()
        found[name] = int(row[0]) if row else 0
    return found


def test_there_is_a_dump_of_the_present_version() -> None:
    assert any(dump.stem == __version__ for dump in DUMPS), "python -m vbatch_site.tests.releases"


@pytest.mark.parametrize("dump", DUMPS, ids=lambda dump: dump.stem)
def test_a_released_version_is_migrated_to_the_present_schema(dump: Path) -> None:
    name = f"release_{dump.stem.replace('.', '_')}"
    _admin(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    url = _url(name)
    releases.load(dump, url)
    with psycopg.connect(url) as connection:
        before = _rows(connection)
    env = {**os.environ, "DATABASE_URL": url}
    _manage("migrate", "-v0", env=env)
    with psycopg.connect(url) as connection, psycopg.connect(new_database()) as fresh:
        assert sorted(_schema(connection) ^ _schema(fresh)) == []
        after = _rows(connection)
    # Nothing that people made is gone.
    kept = ("auth_user", "batches_", "files_", "vbatch_site_", "workers_servedmodel", "django_q_ormq")
    assert {table: after.get(table) for table in before if table.startswith(kept)} == {
        table: count for table, count in before.items() if table.startswith(kept)
    }
    assert before["batches_result"] == 2
    assert _manage("shell", "-v0", "-c", _GO_ON, env=env) == "2 completed 4 3 1"
