"""Lists stay fast with a hundred thousand batches and a million results in the database."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import connection
from django.test import Client

from vbatch_site.models import ApiKey, Project
from vbatch_site.tests.speed import slowness

pytestmark = [pytest.mark.django_db, pytest.mark.slow]

BATCHES, RESULTS = 100_000, 1_000_000
# Of the server for one list page, from the request to the whole answer: what the process and its connection to the
# database computed, on a core as speed.py has it. The best of several, and a try within the limit ends it.
SECONDS = 0.1
TRIES = 12

_BATCHES = """
INSERT INTO batches_batch (id, project_id, api_key_id, status, endpoint, input_file_id, completion_window, metadata,
    default_model, priority, allow_mixed_models, on_invalid_line, continue_from, model, abort_code, abort_message,
    total, completed, failed, input_tokens, cached_tokens, output_tokens, reasoning_tokens, committed, carried,
    created_at, expires_at, in_progress_at, finalizing_at, purged_at, rung_at)
SELECT 'batch_' || lpad(i::text, 12, '0'), %s, %s,
       (ARRAY['completed','completed','completed','failed','expired','cancelled'])[1 + i %% 6],
       '/v1/chat/completions', 'file-' || i, '24h', jsonb_build_object('description', 'run ' || i), '', 0, false,
       'fail', '', 'model-' || i %% 7, '', '', 10, 9, 1, 1, 1, 1, 0, 10, 0, now() - i * interval '30 seconds',
       now() - i * interval '30 seconds' + interval '1 day', now() - i * interval '30 seconds', now(), now(), now()
  FROM generate_series(1, %s) i
"""
_RESULTS = """
INSERT INTO batches_result (batch_id, line, custom_id, status_code, request_id, body, error_code, error_message,
    input_tokens, cached_tokens, output_tokens, reasoning_tokens, milliseconds, attempts, position)
SELECT 'batch_' || lpad((1 + i / 1000)::text, 12, '0'), 1 + i %% 1000, 'line-' || i, 200, '', '{}', '', '', 1, 0, 1, 0,
       5, 1, 1 + i %% 1000
  FROM generate_series(0, %s - 1) i
"""
_FILES = """
INSERT INTO files_file (id, project_id, purpose, filename, bytes, path, created_at)
SELECT 'file-' || i, %s, 'batch', 'input-' || i || '.jsonl', 1000, 'x/' || i, now() - i * interval '30 seconds'
  FROM generate_series(1, %s) i
"""


def _fill(cursor: Any, table: str, statement: str, params: list[Any]) -> None:
    """Fill an empty table as a dump is restored: its indexes are built once, when the rows are there."""
    cursor.execute(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'u' AND conrelid = %s::regclass",
        [table],
    )
    unique = cursor.fetchall()
    for name, _ in unique:
        cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    cursor.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = %s AND indexname <> %s", [table, f"{table}_pkey"]
    )
    indexes = cursor.fetchall()
    for name, _ in indexes:
        cursor.execute(f'DROP INDEX "{name}"')
    cursor.execute(statement, params)
    for _, definition in indexes:
        cursor.execute(definition)
    for name, definition in unique:
        cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
    cursor.execute(f"ANALYZE {table}")


@pytest.fixture
def operator() -> Client:
    """A browser of an operator whose server has a hundred thousand batches and a million results."""
    project, key = Project.default().pk, ApiKey.issue(Project.default(), "nightly")[0].pk
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'batches_batch'"
            " AND is_nullable = 'NO' AND column_default IS NULL"
        )
        named = _BATCHES.partition("(")[2].partition(")")[0].replace("\n", " ").replace(",", " ").split()
        assert {row[0] for row in cursor.fetchall()} <= set(named), "a new column of a batch has to be named here"
        # Without looking each batch of a result up.
        cursor.execute("SET LOCAL session_replication_role = replica")
        _fill(cursor, "batches_batch", _BATCHES, [project, key, BATCHES])
        _fill(cursor, "batches_result", _RESULTS, [RESULTS])
        _fill(cursor, "files_file", _FILES, [project, BATCHES])
        cursor.execute("SET LOCAL session_replication_role = origin")
        # What it computes is counted in its own process.
        cursor.execute("SET LOCAL max_parallel_workers_per_gather = 0")
    client = Client()
    client.defaults["HTTP_AUTHORIZATION"] = f"Bearer {settings.VBATCH_METRICS_TOKEN}"
    client.force_login(get_user_model().objects.create_superuser("op", password="x"))
    return client


PAGES = (
    "/console/batches",
    "/console/batches?status=completed",
    "/console/batches?model=model-3&failures=1",
    "/console/batches?endpoint=/v1/embeddings",
    "/console/batches?key={key}",
    "/console/batches?project=default",
    "/console/batches?project=none",
    "/console/batches?q=batch_000000077777",
    "/console/batches?q=run",
    "/console/batches?q=run 5",
    "/console/batches?q=run 77777",
    "/console/batches?q=nowhere",
    "/console/batches?q=description=run 4711",
    "/console/batches?status=failed&from=2020-01-01",
    "/console/batches?only=failed",
    "/console/batches/batch_000000000007/results",
    "/console/files",
    "/console/files?purpose=batch",
    "/console/files?purpose=other",
    "/console/files?used=yes",
    "/console/files?used=no",
    "/console/files?q=input 4711",
    "/console/keys",
    "/console/webhooks",
    "/console/system",
    "/console/",
    "/admin/batches/batch/",
    "/admin/batches/batch/?q=batch_000000077777",
    "/admin/batches/result/",
    "/admin/files/file/",
    "/metrics",
)


def _served(browser: Client, url: str) -> int:
    """Answer a request as the server does, without the copies of contexts that a test's client keeps."""
    path, _, query = url.partition("?")
    return int(browser.handler(browser._base_environ(PATH_INFO=path, QUERY_STRING=quote(query, "=&/"))).status_code)  # type: ignore[attr-defined]


def _clock() -> Callable[[], float]:
    """Return a clock, in seconds, that runs while this thread or its connection to the database computes."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        process = Path(f"/proc/{cursor.fetchone()[0]}")
    try:
        is_here = process.joinpath("comm").read_text().strip() == "postgres"
    except OSError:
        is_here = False
    if not is_here:
        return time.perf_counter
    statistics = process / "schedstat"
    return lambda: time.thread_time() + int(statistics.read_text().split()[0]) / 1e9


def test_list_pages_answer_within_a_tenth_of_a_second(operator: Client) -> None:
    key = ApiKey.objects.get().pk
    clock = _clock()
    slow = {}
    for url in PAGES:
        best = 10.0
        for _ in range(TRIES):
            before = slowness()
            began = clock()
            assert _served(operator, url.format(key=key)) == 200
            best = min(best, (clock() - began) / ((before + slowness()) / 2))
            if best <= SECONDS:
                break
        else:
            slow[url] = round(best, 3)
    assert slow == {}
