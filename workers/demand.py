"""Which models live requests wait for: web processes write it, runners read it and share the work."""

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import Q

from batches.doorbell import ring_gpu
from vbatch_site import clock
from workers.models import LiveDemand, Worker

# After which a demand that nobody repeated is over; whoever waits repeats it every second.
DEMAND_LIFE = timedelta(seconds=5)
# For which whoever was sent away, a minute at most, is expected back: who comes back has waited since the first time.
MEMORY = timedelta(minutes=2)
# For which a runner's word that it loads the model counts; the row of its engine is there long before.
TAKEN_LIFE = timedelta(seconds=30)
# For which a model that could not be loaded is not tried again for live requests.
LOAD_PAUSE = timedelta(seconds=60)


def want(model_id: int) -> None:
    """Note that somebody waits for a model, and wake the runners when nobody did before."""
    now = clock.ask()
    with transaction.atomic():
        demand, is_new = LiveDemand.objects.select_for_update().get_or_create(
            model_id=model_id, defaults={"since": now, "wanted_at": now}
        )
        if is_new:
            ring_gpu()
            return
        if demand.wanted_at < now - DEMAND_LIFE:
            ring_gpu()
        if demand.wanted_at < now - MEMORY:
            demand.since = now
        demand.wanted_at = now
        demand.save(update_fields=["since", "wanted_at"])


def wanted(now: datetime) -> dict[str, datetime]:
    """Return the models that are waited for, and since when; those that just failed to load are left out."""
    # What lies in the future was written before the clock was set back, and says nothing any more.
    failed = Q(model__load_failed_at__range=(now - LOAD_PAUSE, now + LOAD_PAUSE))
    lately = Q(wanted_at__range=(now - DEMAND_LIFE, now + DEMAND_LIFE))
    rows = LiveDemand.objects.filter(lately, ~failed, model__enabled=True)
    return dict(rows.values_list("model__name", "since"))


def met(service_id: int) -> None:
    """Note that an engine answers: who waits for its model from now on waits anew."""
    LiveDemand.objects.filter(model__services=service_id).delete()


def take(model: str, holder: str) -> bool:
    """Return whether this runner is the one to load a model that is waited for; true again when it asks again."""
    if Worker.objects.filter(pk=holder, load__name=model).exists():
        return True  # a person chose it
    now = clock.ask()
    free = Q(taken_at=None) | ~Q(taken_at__range=(now - TAKEN_LIFE, now + TAKEN_LIFE)) | Q(taken_by=holder)
    rows = LiveDemand.objects.filter(free, model__name=model)
    return bool(rows.update(taken_by=holder, taken_at=now))
