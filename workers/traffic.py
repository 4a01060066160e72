"""What web processes and runners tell each other of live requests: each process and engine has a row."""

from collections.abc import Sequence
from datetime import timedelta

from django.db.models import QuerySet
from django.utils import timezone

from workers.admission import QUIET_SECONDS, Traffic
from workers.models import LiveTraffic

_KEPT = timedelta(hours=1)  # rows of processes and engines that are gone
_CLOCKS_DIFFER = timedelta(seconds=QUIET_SECONDS)  # at most, between two hosts


def write(service_id: int, process: str, in_flight: int, first_tokens: Sequence[tuple[float, float]]) -> None:
    """Note what one process sees of an engine's live requests."""
    now = timezone.now()
    values = {"in_flight": in_flight, "first_tokens": list(first_tokens), "seen_at": now}
    _, is_new = LiveTraffic.objects.update_or_create(service_id=service_id, process=process, defaults=values)
    if is_new:
        LiveTraffic.objects.filter(seen_at__lt=now - _KEPT).delete()


def read(service_id: int) -> Traffic:
    """Return what all processes saw of an engine's live requests."""
    rows = list(_lately(service_id, 2 * QUIET_SECONDS).values_list("seen_at", "first_tokens"))
    if not rows:
        return Traffic()
    latest = (timezone.now() + _CLOCKS_DIFFER).timestamp()
    pairs = [(float(at), float(seconds)) for _, pairs in rows for at, seconds in pairs if at <= latest]
    return Traffic(max(seen_at for seen_at, _ in rows).timestamp(), pairs)


def is_used(service_id: int) -> bool:
    """Return whether an engine had live requests lately."""
    return _lately(service_id, QUIET_SECONDS).exists()


def in_flight(service_id: int) -> int:
    """Return the live requests that an engine works on now."""
    return sum(_lately(service_id, 3).values_list("in_flight", flat=True))


def _lately(service_id: int, seconds: float) -> "QuerySet[LiveTraffic]":
    now = timezone.now()
    # What is said to have been seen later than now was seen before the clock was set back.
    return LiveTraffic.objects.filter(
        service_id=service_id, seen_at__range=(now - timedelta(seconds=seconds), now + _CLOCKS_DIFFER)
    )
