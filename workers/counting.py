"""What of engines is counted in the tally."""

from vbatch_site import tally
from vbatch_site.tally import Counter
from workers.models import Service

STARTS, SECONDS = "engine_starts", "engine_start_seconds"
FAILURES, DEATHS = "engine_start_failures", "engine_deaths"

LOAD, WAKE, LAUNCH = "load", "wake", "launch"


def _model(service_id: int) -> str:
    return Service.objects.values_list("model__name", flat=True).filter(pk=service_id).first() or ""


def started(service_id: int, kind: str, seconds: float) -> None:
    """Count an engine that answers, and what that took: loaded or woken by a worker, or launched as a service."""
    model = _model(service_id)
    tally.count({Counter(STARTS, model=model, label=kind): 1, Counter(SECONDS, model=model, label=kind): seconds})


def ended_badly(service_id: int, *, had_started: bool) -> None:
    """Count an engine that could not be started, or that died."""
    tally.count({Counter(DEATHS if had_started else FAILURES, model=_model(service_id)): 1})
