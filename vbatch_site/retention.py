"""Delete what this room keeps no longer: the audit's oldest entries, failed tasks, sessions, idempotency keys."""

from datetime import datetime, timedelta

from django.contrib.sessions.models import Session
from django_q.models import Failure

from vbatch_site import audit, tally
from vbatch_site.openai import idempotency

# django-q2 bounds the successes that it keeps, and no failures.
_FAILURE_LIFE = timedelta(days=30)


def sweep(now: datetime) -> None:
    """Do it once."""
    idempotency.sweep(now)
    audit.sweep(now)
    tally.fold()
    Failure.objects.filter(stopped__lt=now - _FAILURE_LIFE).delete()
    Session.objects.filter(expire_date__lt=now).delete()
