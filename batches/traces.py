"""The spans of a batch: all of it, its states, and each lease of a shard."""

from datetime import datetime
from functools import partial
from typing import Any

from django.db import transaction
from django.utils import timezone

from batches.leases import Lease
from batches.models import Batch
from batches.signals import let_go, moved
from batches.states import TERMINAL, BatchStatus, timestamp_field
from vbatch_site import traces


def connect() -> None:
    """Begin, where traces are wanted."""
    if traces.is_on:
        moved.connect(_on_move, dispatch_uid="batches.traces.on_move")
        let_go.connect(_on_let_go, dispatch_uid="batches.traces.on_let_go")


def _on_move(batch_id: str, to: BatchStatus, at: datetime, **_: Any) -> None:
    if to in TERMINAL:
        transaction.on_commit(partial(_ended, batch_id, to, at), robust=True)  # a trace that fails harms no batch


def _ended(batch_id: str, status: BatchStatus, at: datetime) -> None:
    batch = Batch.objects.get(pk=batch_id)
    traces.span(
        batch.pk,
        "batch",
        batch.created_at,
        at,
        first=True,
        after=batch.input_file_id,
        batch=batch.pk,
        project=batch.project_id,
        endpoint=batch.endpoint,
        status=status.value,
        lines=batch.total,
        failed=batch.failed,
    )
    states = (BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING, BatchStatus.FINALIZING)
    entered = [(state.value, getattr(batch, timestamp_field(state))) for state in states]
    traces.phases(batch.pk, [(BatchStatus.VALIDATING.value, batch.created_at), *entered], at)


def _on_let_go(lease: Lease, outcome: str, **_: Any) -> None:
    traces.span(
        lease.batch_id,
        "shard",
        lease.claimed_at,
        timezone.now(),
        batch=lease.batch_id,
        shard=lease.shard_id,
        epoch=lease.epoch,
        model=lease.model,
        holder=lease.holder,
        lines=len(lease.lines),
        outcome=outcome,
    )
