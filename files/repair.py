"""Remove what processes that were killed left of files on their way."""

from collections.abc import Iterable
from datetime import timedelta

from django.utils import timezone

from files import storage, uploads
from files.models import File, UploadPart

# Another host may be at work on the same storage. From its row to its bytes a file takes seconds, or minutes if it is
# joined from parts; the sweep, which nobody asks for, waits a day.
UNFINISHED = timedelta(hours=1)
# A batch may run whose file was deleted in this time to come.
CLOCK_SET_BACK = timedelta(hours=2)


def leftovers() -> Iterable[str]:
    """Yield what was removed."""
    if count := storage.delete_abandoned(UNFINISHED.total_seconds()):
        yield f"removed temporary files that nobody was writing any more: {count}"
    now = timezone.now()
    # A file on its way has its end in the future, and one that was deleted before the clock was set back.
    never_arrived = list(File.objects.filter(deleted_at__gt=now + CLOCK_SET_BACK, created_at__lte=now - UNFINISHED))
    for file in never_arrived:
        uploads.discard(file)
    if never_arrived:
        yield f"removed files whose upload or joining was cut off: {len(never_arrived)}"
    parts = list(UploadPart.objects.filter(stored=False, created_at__lte=now - UNFINISHED))
    for part in parts:
        storage.delete(part.path)
        part.delete()
    if parts:
        yield f"removed parts of uploads that were cut off: {len(parts)}"
