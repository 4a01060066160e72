"""The first page: what every room has to say, at a glance."""

import shutil
from collections.abc import Iterable
from functools import cache

from django.conf import settings
from django.core import checks
from django.http import HttpRequest, HttpResponse

from vbatch_site.console import registry
from vbatch_site.console.pages import DASHBOARD_SECONDS, page, show
from vbatch_site.console.registry import Notice

# A batch's output is about as large as its input, which may be 200 MB; below this the next one may not fit.
_LOW_DISK_BYTES = 2 << 30


@page()
def dashboard(request: HttpRequest) -> HttpResponse:
    """Show tiles, warnings and every room's panels."""
    context = {
        "title": "Dashboard",
        "tiles": registry.tiles(),
        "warnings": registry.warnings(),
        "sections": registry.sections(request),
        "seconds": DASHBOARD_SECONDS,
    }
    return show(request, "console/site/dashboard.html", context, part="console/site/_dashboard.html")


def warnings() -> Iterable[Notice]:
    """Say what an operator must not overlook about this server."""
    if settings.VBATCH_ENGINE == "sim":
        yield Notice("The simulated engine runs here: answers are made up.", tone="danger")
    if settings.VBATCH_AUTH == "optional":
        yield Notice("Requests need no key (VBATCH_AUTH=optional): only for a network you trust.")
    free = free_bytes()
    if free is not None and free < _LOW_DISK_BYTES:
        yield Notice(f"Only {free / (1 << 30):.1f} GiB are free for files.", tone="danger")

    for text in _doubts():
        yield Notice(text)


@cache
def _doubts() -> list[str]:
    """Return what Django's checks of this installation say; it stays so until the process ends."""
    found = checks.run_checks()
    return [str(doubt.msg) for doubt in found if doubt.level >= checks.WARNING and not doubt.is_silenced()]


def free_bytes() -> int | None:
    """Return the room on the disk that files go to, None when that can't be read."""
    try:
        return shutil.disk_usage(settings.VBATCH_HOME).free
    except OSError:
        return None
