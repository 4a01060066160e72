"""What others ask of the storage: is it there, and how much room it has."""

from collections.abc import Iterable
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily, Metric

from files import storage
from vbatch_site.metrics import Scrape
from vbatch_site.readiness import Verdict


def of_storage(scrape: Scrape) -> Iterable[Metric]:
    """Return the room that is left on the disk that files go to, or through."""
    try:
        yield GaugeMetricFamily("vbatch_storage_free_bytes", "Free on the disk of files.", value=storage.free_bytes())
    except OSError:
        return


def storage_verdict(now: datetime) -> Verdict:
    """Look whether a file can be stored."""
    try:
        storage.probe()
    except OSError:
        return Verdict.FAILED
    return Verdict.OK
