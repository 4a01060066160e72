"""What the application remembers: jobs and their results, in SQLite."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

ENDED = ("completed", "failed", "expired", "cancelled")

_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
    id TEXT PRIMARY KEY,            -- the batch's id; until there is one, the job's own key
    key TEXT NOT NULL UNIQUE,       -- under which the batch is made once
    filename TEXT NOT NULL,
    status TEXT NOT NULL,
    total INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    has_results INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
);
CREATE TABLE IF NOT EXISTS result (
    job TEXT NOT NULL REFERENCES job (id),
    custom_id TEXT NOT NULL,
    status_code INTEGER,            -- null: it was never answered
    answer TEXT,                    -- the body as JSON
    error TEXT,
    PRIMARY KEY (job, custom_id)
);
CREATE TABLE IF NOT EXISTS webhook (id TEXT PRIMARY KEY);
"""


class Store:
    """The database; each call has a connection of its own, so that any thread may use it."""

    def __init__(self, path: str) -> None:
        self._path = path
        with self._open() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(_SCHEMA)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=30)
        connection.row_factory = sqlite3.Row
        try:
            with connection:  # commits, or rolls back
                yield connection
        finally:
            connection.close()

    def add(self, key: str, filename: str) -> None:
        """Write a job down that has no batch yet."""
        with self._open() as connection:
            connection.execute(
                "INSERT INTO job (id, key, filename, status) VALUES (?, ?, ?, 'submitting')", (key, key, filename)
            )

    def forget(self, key: str) -> None:
        """Remove a job whose batch was refused."""
        with self._open() as connection:
            connection.execute("DELETE FROM job WHERE key = ?", (key,))

    def submitted(self, key: str, batch_id: str) -> None:
        """Note a job's batch."""
        with self._open() as connection:
            connection.execute("UPDATE job SET id = ?, status = 'validating' WHERE key = ?", (batch_id, key))

    def seen(self, batch_id: str, status: str, counts: dict[str, int], error: str | None) -> None:
        """Note how a batch is; one that has ended stays so."""
        with self._open() as connection:
            # Two looks at a time: the one that came first may be written down last.
            connection.execute(
                "UPDATE job SET status = ?, total = ?, completed = ?, failed = ?, error = ? WHERE id = ? "
                "AND status NOT IN ('completed', 'failed', 'expired', 'cancelled')",
                (status, counts["total"], counts["completed"], counts["failed"], error, batch_id),
            )

    def add_results(self, job: str, results: Iterable[tuple[str, int | None, str | None, str | None]]) -> None:
        """Write results of a job; those that are there already stay as they are."""
        with self._open() as connection:
            connection.executemany(
                "INSERT OR IGNORE INTO result (job, custom_id, status_code, answer, error) VALUES (?, ?, ?, ?, ?)",
                [(job, *result) for result in results],
            )

    def has_results(self, job: str) -> None:
        """Note that a job's results are all here."""
        with self._open() as connection:
            connection.execute("UPDATE job SET has_results = 1 WHERE id = ?", (job,))

    def is_new(self, webhook_id: str) -> bool:
        """Remember a webhook; return whether it came for the first time."""
        with self._open() as connection:
            return connection.execute("INSERT OR IGNORE INTO webhook VALUES (?)", (webhook_id,)).rowcount == 1

    def open_jobs(self) -> list[str]:
        """Return the batches that have not ended, or whose results are not here."""
        with self._open() as connection:
            rows = connection.execute("SELECT id FROM job WHERE has_results = 0 AND status != 'submitting'")
            return [row["id"] for row in rows]

    def job(self, job_id: str) -> dict[str, Any] | None:
        """Return a job."""
        with self._open() as connection:
            row = connection.execute("SELECT * FROM job WHERE id = ?", (job_id,)).fetchone()
        return dict(row) if row else None

    def jobs(self, limit: int) -> list[dict[str, Any]]:
        """Return the newest jobs."""
        with self._open() as connection:
            rows = connection.execute("SELECT * FROM job ORDER BY created_at DESC, rowid DESC LIMIT ?", (limit,))
            return [dict(row) for row in rows]

    def results(self, job: str, after: str, limit: int) -> list[dict[str, Any]]:
        """Return results of a job, in the order of their custom_ids, after one of them."""
        query = (
            "SELECT custom_id, status_code, answer, error FROM result WHERE job = ? AND custom_id > ? "
            "ORDER BY custom_id LIMIT ?"
        )
        with self._open() as connection:
            return [dict(row) for row in connection.execute(query, (job, after, limit))]
