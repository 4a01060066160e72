"""Run a management command, with the embedded Postgres when DATABASE_URL is empty: the program `vbatch`."""

import os
import sys


def main() -> None:
    """Start the database if it is ours, then hand over to Django."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "vbatch_site.settings")
    from vbatch_site import database

    try:
        database.ensure_url()
    except database.DatabaseUnavailable as error:
        if sys.argv[1:2] != ["doctor"]:
            sys.exit(f"vbatch: {error}")
        # The doctor says it among the rest; the settings need some URL.
        database.failure = str(error)
        os.environ["DATABASE_URL"] = "postgresql://?host=/dev/null"
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    try:
        execute_from_command_line(sys.argv)
    except OperationalError as error:
        said = " ".join(str(error).split())
        sys.exit(f"vbatch: the database failed ({said}); check DATABASE_URL, or empty it to use the embedded one.")


if __name__ == "__main__":
    main()
