from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from workers import samples


class Command(BaseCommand):
    """Prepare the sample models under VBATCH_HOME."""

    help = "Put the two sample models, which ship as Python packages, under VBATCH_HOME/models."
    # Nothing here reads the database, and a check would wait for it.
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Prepare what is missing and print where each model is."""
        try:
            samples.prepare(settings.VBATCH_HOME)
        except samples.SampleUnavailable as error:
            raise CommandError(str(error)) from error
        for name in samples.BUILDERS:
            self.stdout.write(f"{name}: {samples.path_of(name, settings.VBATCH_HOME)}")
