"""What web processes and runners tell each other of live requests: each process and engine has a row."""

from collections.abc import Sequence
from datetime import timedelta

from django.utils import timezone

from workers.admission import QUIET_SECONDS, Traffic
from workers.models import LiveTraffic

_KEPT = timedelta(hours=1)  # rows of processes and engines that are gone


def write(service_id: int, process: str, in_flight: int, first_tokens: Sequence[tuple[float, float]]) -> None:
    """Note what one process sees of an engine's live requests."""
    now = timezone.now()
    values = {"in_flight": in_flight, "first_tokens": list(first_tokens), "seen_at": now}
    _, is_new = LiveTraffic.objects.update_or_create(service_id=service_id, process=process, defaults=values)
    if is_new:
        LiveTraffic.objects.filter(seen_at__lt=now - _KEPT).delete()


def read(service_id: int) -> Traffic:
    """Return what all processes saw of an engine's live requests."""
    since = timezone.now() - timedelta(seconds=2 * QUIET_SECONDS)
    rows = list(
        LiveTraffic.objects.filter(service_id=service_id, seen_at__gt=since).values_list("seen_at", "first_tokens")
    )
    if not rows:
        return Traffic()
    pairs = [(float(at), float(seconds)) for _, first_tokens in rows for at, seconds in first_tokens]
    return Traffic(max(seen_at for seen_at, _ in rows).timestamp(), pairs)


def is_used(service_id: int) -> bool:
    """Return whether an engine had live requests lately."""
    since = timezone.now() - timedelta(seconds=QUIET_SECONDS)
    return LiveTraffic.objects.filter(service_id=service_id, seen_at__gt=since).exists()


def in_flight(service_id: int) -> int:
    """Return the live requests that an engine works on now."""
    since = timezone.now() - timedelta(seconds=3)
    rows = LiveTraffic.objects.filter(service_id=service_id, seen_at__gt=since)
    return sum(rows.values_list("in_flight", flat=True))
