"""Which batches read a file: what the files room asks."""

from collections.abc import Iterable

from django.db.models import Count
from django.urls import reverse

from batches.models import Batch
from batches.states import ACTIVE
from files.console.pages import Use

_LISTED = 50


def of_file(file_id: str) -> Iterable[Use]:
    """Return the batches that read a file, newest first."""
    for batch in Batch.objects.filter(input_file_id=file_id).order_by("-created_at")[:_LISTED]:
        yield Use(batch.pk, reverse("console:batch", args=[batch.pk]), batch.status in ACTIVE)


def count(file_ids: list[str]) -> dict[str, int]:
    """Return how many batches read each file."""
    rows = Batch.objects.filter(input_file_id__in=file_ids).order_by()
    return dict(rows.values_list("input_file_id").annotate(n=Count("pk")))
