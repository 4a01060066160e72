"""Whether new batches are taken: what an operator switches off before maintenance. What is there runs on."""

from django.db import transaction
from django.utils import timezone

from batches.models import IntakePause
from vbatch_site import audit
from vbatch_site.openai.errors import ApiError

_ONLY = 1  # the key of the one row
# Of seconds; SDKs wait so long before they try again, and they try twice.
_RETRY_AFTER = "30"


def state() -> IntakePause | None:
    """Return since when nothing is taken, and by whom; None while batches are taken."""
    return IntakePause.objects.first()


def pause(by: str) -> None:
    """Take no new batches; where that is so already, nothing changes."""
    with transaction.atomic():
        IntakePause.objects.get_or_create(pk=_ONLY, defaults={"since": timezone.now(), "by": by[:150]})
        audit.note_change()


def resume() -> None:
    """Take new batches again."""
    with transaction.atomic():
        IntakePause.objects.all().delete()
        audit.note_change()


def check() -> None:
    """Raise a 503 while no batches are taken."""
    if state() is not None:
        message = "This server takes no new batches at the moment. Batches that exist go on. Please try again later."
        headers = {"retry-after": _RETRY_AFTER}
        raise ApiError(message, kind="server_error", code="intake_paused", http_status=503, headers=headers)
