#!/usr/bin/env python
"""Run a management command, with the embedded Postgres when DATABASE_URL is empty."""

import os
import sys


def main() -> None:
    """Start the database if it is ours, then hand over to Django."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vbatch_site.settings")
    from vbatch_site.database import DatabaseUnavailable, ensure_url

    try:
        ensure_url()
    except DatabaseUnavailable as error:
        sys.exit(f"vbatch: {error}")
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    try:
        execute_from_command_line(sys.argv)
    except OperationalError as error:
        said = " ".join(str(error).split())
        sys.exit(f"vbatch: the database failed ({said}); check DATABASE_URL, or empty it to use the embedded one.")


if __name__ == "__main__":
    main()
