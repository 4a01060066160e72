"""Say what is wrong with the installation, and what to do."""

import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand

from vbatch_site import doctor


class Command(BaseCommand):
    help = "Looks at database, storage, clusters, engine, GPUs, disk, clock and settings; exit status 1 if one failed."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--json", action="store_true", help="print an object instead of lines")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print one line for each finding."""
        found = []
        for finding in doctor.examine():
            found.append(finding)
            if not options["json"]:
                todo = f" {finding.todo}" if finding.todo else ""
                end = "" if finding.said.endswith(".") else "." if todo else ""
                self.stdout.write(f"{finding.state:8} {finding.name:16} {finding.said}{end}{todo}")
                self.stdout.flush()
        is_well = all(finding.state != doctor.FAILED for finding in found)
        if options["json"]:
            self.stdout.write(json.dumps({"ok": is_well, "findings": [asdict(finding) for finding in found]}, indent=2))
        if not is_well:
            sys.exit(1)
