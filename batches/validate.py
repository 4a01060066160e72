"""Take a new batch from `validating` to `in_progress` or `failed`: one pass over its input file."""

from contextlib import ExitStack

import msgspec
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from batches import doorbell, leases, quota
from batches.carrying import FILES_GONE, EarlierAnswers, EarlierFilesGone
from batches.catalogue import known_models
from batches.chosen import ChosenLines
from batches.locks import batch_lock
from batches.models import Batch, OnInvalidLine, Provenance, Shard, StaleTransition
from batches.settled import SettledLines
from batches.states import BatchStatus
from batches.validation import LineError, Validator
from files import storage
from files.jsonl import iter_lines
from files.models import File


def validate(batch_id: str) -> bool:
    """Validate a batch; return whether it was done here."""
    done = _validate(batch_id)
    # A cancel that came while the lock was held rang for nobody.
    if Batch.objects.filter(pk=batch_id, status=BatchStatus.CANCELLING).exists():
        doorbell.ring_finalize(batch_id)
    return done


def _validate(batch_id: str) -> bool:
    with batch_lock(batch_id) as mine:
        if not mine:
            return False
        batch = Batch.objects.select_related("project").filter(pk=batch_id, status=BatchStatus.VALIDATING).first()
        if batch is None:
            return False
        file = File.objects.visible_to(batch.project).filter(pk=batch.input_file_id).first()
        if file is None:
            return _fail(batch, [_cannot_find(batch)])
        settled = SettledLines(batch.pk)
        chosen: ChosenLines | None = None
        earlier = Batch.objects.visible_to(batch.project).filter(pk=batch.continue_from).first()
        validator = Validator(
            batch.endpoint,
            known_models(),
            batch.default_model,
            share_answers=settings.VBATCH_SHARE_ANSWERS,
            allow_mixed_models=batch.allow_mixed_models,
            skip=settled.refuse if batch.on_invalid_line == OnInvalidLine.SKIP else None,
        )
        try:
            with ExitStack() as stack:
                if earlier is not None:
                    answers = stack.enter_context(EarlierAnswers(earlier, settled))
                    validator.answered = answers.take
                    if batch.chosen_lines is not None:
                        chosen = stack.enter_context(ChosenLines(batch.chosen_lines, answers, earlier, settled))
                        validator.answered = chosen.take
                stream = stack.enter_context(storage.opened(file.path))
                number = 0
                for number, offset, raw in iter_lines(stream):
                    validator.feed(number, offset, raw)
                    if validator.full:
                        break
        except FileNotFoundError:
            return _fail(batch, [_cannot_find(batch)])
        except EarlierFilesGone as error:
            return _fail(batch, [LineError(FILES_GONE, str(error), "continue_from", None)])
        if not validator.full:
            File.objects.filter(pk=file.pk, lines=None).update(lines=number)
        validator.finish()
        if validator.failed:
            return _fail(batch, validator.errors)
        if chosen is not None:
            if chosen.missing:
                return _fail(batch, [_no_such_line(min(chosen.missing))])
            validator.carried -= chosen.errors
            validator.invalid += chosen.errors
        settled.store()
        return _begin(batch, validator, settled)


def _cannot_find(batch: Batch) -> LineError:
    message = (
        f"Cannot find file {batch.input_file_id}, or organization {batch.project.name} does not have access to it."
    )
    return LineError("invalid_request", message, "file_id", None)


def _no_such_line(custom_id: str) -> LineError:
    return LineError("line_not_found", f"The input file has no line with custom_id '{custom_id[:200]}'.", "lines", None)


def _fail(batch: Batch, errors: list[LineError]) -> bool:
    listed = {"object": "list", "data": msgspec.to_builtins(errors)}
    try:
        batch.move(BatchStatus.FAILED, reason=errors[0].code, errors=listed)
    except StaleTransition:
        return False  # cancelled or expired meanwhile
    return True


def _begin(batch: Batch, validator: Validator, settled: SettledLines) -> bool:
    """Write the plan and open the batch to the workers in one transaction."""
    try:
        with transaction.atomic():
            wanted = {model: list(plan.lengths) for model, plan in validator.plans.items()}
            if over := quota.over_queue(batch, wanted):
                return _fail(batch, [over])
            planned = validator.shards()
            shards = (
                Shard(batch=batch, index=i, model=s.model, lines=s.packed, count=s.count) for i, s in enumerate(planned)
            )
            Shard.objects.bulk_create(shards, batch_size=200)
            settled.add_to_plan()
            batch.move(
                BatchStatus.IN_PROGRESS,
                model=validator.model,
                total=validator.requests,
                completed=validator.carried,
                carried=validator.carried,
                failed=validator.invalid,
                committed=len(settled),
                chosen_lines=None,
                rung_at=timezone.now(),
            )
            if validator.carried:
                # Whoever computed the answers that are taken over answers for them here too.
                batch.provenance.add(*Provenance.objects.filter(batches=batch.continue_from))
            if validator.plans:
                doorbell.ring_gpu()
            else:
                leases.finish_if_done(batch.pk)
    except StaleTransition:
        return False
    return True
