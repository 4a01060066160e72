"""Crashes to order: a process that ends between two statements."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection

NEVER = 1_000_000  # more statements than anything takes


class Crash(BaseException):
    """A process ended here."""


@contextmanager
def crashing(before_statement: int) -> Iterator[None]:
    """End a block before its n-th statement, as a kill does: what its session held is given up, and nothing is said."""
    left = before_statement

    def count(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Crash
        return execute(sql, params, many, context)

    try:
        with connection.execute_wrapper(count):
            yield
    except Crash:
        connection.close()
