"""Empty a project of its batches."""

from typing import Any

from batches import line_index
from batches.finalize import file_names, purge
from batches.locks import batch_lock
from batches.models import Batch
from batches.webhooks.models import WebhookDelivery, WebhookEndpoint
from files import storage
from vbatch_site.models import Project

_AT_ONCE = 5000  # rows


def empty(project: Project) -> None:
    """Delete batches with their results, files' bytes and webhooks; what is being validated or finalized stays."""
    for batch_id in Batch.objects.filter(project=project).values_list("pk", flat=True):
        with batch_lock(batch_id) as mine:
            if not mine:
                continue
            # Without its shards a worker's lease is lost: what it still computes for them is thrown away.
            purge(batch_id)
            # A crash may have left files that have no row yet.
            for name in (*file_names(batch_id).values(), line_index.name_for(batch_id)):
                storage.delete(name)
            Batch.objects.filter(pk=batch_id).delete()
    for model in (WebhookDelivery, WebhookEndpoint):
        rows: Any = model._default_manager.filter(project=project)
        while rows.filter(pk__in=rows.values("pk")[:_AT_ONCE]).delete()[0]:
            continue


def is_empty(project: Project) -> bool:
    """Return whether a project has no batch."""
    return not Batch.objects.filter(project=project).exists()
