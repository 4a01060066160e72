"""The switch on the system page that keeps new batches out."""

from collections.abc import Iterable
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import reverse

from batches import intake
from vbatch_site.console.pages import back, page, say
from vbatch_site.console.registry import Notice
from vbatch_site.console.roles import Right


def control(request: HttpRequest) -> dict[str, Any]:
    """Return what the system page shows."""
    return {"pause": intake.state()}


def warnings() -> Iterable[Notice]:
    """Say that nothing is taken: whoever switched that may have gone home."""
    if pause := intake.state():
        yield Notice(f"New batches are not taken; {pause.by} switched that.", reverse("console:system"))


@page(Right.ADMINISTER, methods=("POST",))
def pause(request: HttpRequest) -> HttpResponseBase:
    """Take no new batches."""
    intake.pause(by=str(request.user))
    say(request, "New batches are not taken.")
    return back(request, reverse("console:system"))


@page(Right.ADMINISTER, methods=("POST",))
def resume(request: HttpRequest) -> HttpResponseBase:
    """Take new batches again."""
    intake.resume()
    say(request, "New batches are taken again.")
    return back(request, reverse("console:system"))
