"""Run one file through the whole pipeline, without a web server."""

import sys
import time
from argparse import ArgumentParser
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from tqdm import tqdm

from batches import creation
from batches.models import Batch
from batches.states import TERMINAL, BatchStatus
from files import storage
from files.models import File, Purpose
from files.uploads import create_file
from vbatch_site import clock
from vbatch_site.models import Project
from vbatch_site.openai.errors import ApiError
from vbatch_site.supervisor import cluster, running
from workers.models import Worker
from workers.repair import killed

POLL_SECONDS = 0.5
ALIVE = timedelta(seconds=10)  # a worker that said something this recently is at work
_BLOCK = 1 << 20  # bytes copied at a time


class Command(BaseCommand):
    help = "Runs a JSONL file of requests and writes all answers to one file, the failed ones last."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("input", type=Path, metavar="IN")
        parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
        parser.add_argument("--model", default="", help="for lines that name none")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the file; exit with 1 when it did not validate or a line failed."""
        call_command("migrate", interactive=False, verbosity=0)
        # A server that was killed a moment ago does no work, whatever its last sign of life says.
        for said in killed():
            self.stderr.write(f"repaired: {said}")
        batch = self.begin(options["input"], options["model"])
        # A server on this home does the work; without one the clusters are ours for the while.
        alive = Worker.objects.filter(stopped_at=None, seen_at__gt=clock.ask() - ALIVE).exists()
        with running([] if alive else [cluster("default"), cluster("gpu")]):
            try:
                batch = self.follow(batch)
            except KeyboardInterrupt:
                raise CommandError(f"Interrupted; {batch.pk} goes on when a server runs on this home.") from None
        self.report(batch, options["output"])

    def begin(self, source: Path, model: str) -> Batch:
        """Return the batch of a local file."""
        project = Project.default()
        try:
            with source.open("rb") as stream:
                upload = UploadedFile(stream, name=source.name, size=source.stat().st_size)
                file = create_file(project, upload, Purpose.BATCH, None)
            body: dict[str, Any] = {"input_file_id": file.pk}
            # A first line without a URL is reported like every other bad line; any endpoint will do for that.
            body["endpoint"] = creation.first_url(file) or "/v1/chat/completions"
            body["completion_window"] = settings.VBATCH_COMPLETION_WINDOWS[0]
            if model:
                body["metadata"] = {"model": model}
            return creation.create(project, body)
        except OSError as error:
            raise CommandError(f"Can't read {source}: {error.strerror}.") from None
        except ApiError as error:
            raise CommandError(error.body["error"]["message"]) from None

    def follow(self, batch: Batch) -> Batch:
        """Show progress until the batch ends."""
        with tqdm(unit="req", disable=None, file=sys.stderr) as bar:
            while True:
                batch.refresh_from_db()
                if batch.total and bar.total != batch.total:
                    bar.total = batch.total
                    bar.unpause()
                bar.set_description(batch.status, refresh=False)
                bar.set_postfix(failed=batch.failed, refresh=False)
                bar.update(batch.completed + batch.failed - bar.n)
                if batch.status in TERMINAL:
                    return batch
                time.sleep(POLL_SECONDS)

    def report(self, batch: Batch, target: Path) -> None:
        """Write the answers and say how it went."""
        if batch.status == BatchStatus.FAILED:
            faults = (batch.errors or {}).get("data", [])
            for error in faults:
                place = f"line {error['line']}: " if error["line"] else ""
                self.stderr.write(f"{place}{error['message']} ({error['code']})")
            raise CommandError(f"{len(faults)} faults found; nothing was run.")
        with target.open("wb") as out:
            for file_id in (batch.output_file_id, batch.error_file_id):
                if file_id:
                    with storage.opened(File.objects.get(pk=file_id).path) as stream:
                        _copy(stream, out)
        seconds = 0.0
        if batch.in_progress_at and batch.finalizing_at:
            seconds = (batch.finalizing_at - batch.in_progress_at).total_seconds()
        self.stderr.write(
            f"{batch.status}: {batch.completed} of {batch.total} answered, {batch.failed} failed, in {seconds:.1f} s."
        )
        if batch.completed < batch.total:
            sys.exit(1)


def _copy(source: BinaryIO, out: BinaryIO) -> None:
    while block := source.read(_BLOCK):
        out.write(block)
