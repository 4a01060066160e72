"""What batches make of files and keys: what the rooms below ask."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.db.models import Count, Exists, OuterRef
from django.urls import reverse
from django.utils import timezone

from batches.models import Batch
from batches.states import ACTIVE
from files.console.pages import Use
from vbatch_site.console.registry import KeyUse
from vbatch_site.console.tables import MOST_COUNTED, bounded_counts

_LISTED = 50
_LATELY = timedelta(days=30)


def of_file(file_id: str) -> Iterable[Use]:
    """Return the batches that read a file, newest first."""
    for batch in Batch.objects.filter(input_file_id=file_id).order_by("-created_at")[:_LISTED]:
        yield Use(batch.pk, reverse("console:batch", args=[batch.pk]), batch.status in ACTIVE)


def count(file_ids: list[str]) -> dict[str, int]:
    """Return how many batches read each file."""
    rows = Batch.objects.filter(input_file_id__in=file_ids).order_by()
    return dict(rows.values_list("input_file_id").annotate(n=Count("pk")))


def narrow(files: Any, used: bool) -> Any:
    """Return the files that a batch reads or read, or the others."""
    readers = Exists(Batch.objects.filter(input_file_id=OuterRef("pk")))
    return files.filter(readers if used else ~readers)


def of_keys(ids: list[int]) -> dict[int, KeyUse]:
    """Return what keys made lately, and how much of it runs."""
    since = (timezone.now() - _LATELY).date()
    lately = f"created_at >= '{since.isoformat()} 00:00:00+00'"
    made = bounded_counts("batches_batch", {"api_key_id": ids}, lately)["api_key_id"]
    active = Batch.objects.filter(status__in=ACTIVE, api_key__in=ids).order_by().values_list("api_key")
    running = dict(active.annotate(n=Count("pk")))
    found = {}
    for key, n in made.items():
        url = f"{reverse('console:batches')}?{urlencode({'key': key, 'from': since.isoformat()})}"
        text = f"{MOST_COUNTED:,}+" if n > MOST_COUNTED else f"{n:,}"
        found[key] = KeyUse(text, url, running.get(key, 0))
    return found
