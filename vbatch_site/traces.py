"""OpenTelemetry spans of uploads and batches. Pure: no Django.

A batch's trace has the hexadecimal part of the batch's id as its own id, so that each process adds its spans without
having been told anything. Without OTEL_EXPORTER_OTLP_ENDPOINT nothing is imported and nothing done.
"""

import functools
import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from multiprocessing.util import Finalize
from typing import Any

logger = logging.getLogger(__name__)

_EXPORT_SECONDS = 3.0  # for one attempt; the last one is made while the process stops
_SCOPE_KEY = "vbatch.trace"

is_on = any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") for name in ("ENDPOINT", "TRACES_ENDPOINT"))
_ids = threading.local()  # the ids of the span that is being started


def _ids_of(name: str) -> tuple[int, int]:
    """Return the ids of the trace of an object of the API, and of its first span."""
    digits = name.rpartition("_")[2]
    trace = digits if re.fullmatch("[0-9a-f]{32}", digits) else hashlib.sha256(name.encode()).hexdigest()[:32]
    return int(trace, 16), int(trace[16:], 16)


@functools.cache
def _tracer(process: int) -> Any:
    """Return the process's tracer, None where the packages are not installed."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
    except ImportError:
        logger.warning("no traces: install vbatch[otel]", extra={"action": "traces_off"})
        return None

    class Ids(IdGenerator):
        def generate_trace_id(self) -> int:
            return int(_ids.trace)

        def generate_span_id(self) -> int:
            return int(_ids.span) or RandomIdGenerator().generate_span_id()

    resource = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "vbatch"})
    provider = TracerProvider(resource=resource, id_generator=Ids(), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=_EXPORT_SECONDS)))
    # Workers of django-q2 leave without running what atexit has.
    Finalize(None, provider.shutdown, exitpriority=0)
    return provider.get_tracer("vbatch")


def span(about: str, name: str, began: datetime, ended: datetime, *, first: bool = False, **more: Any) -> None:
    """Add a span to an object's trace; `first` if it is the one around all others. Values that are None are left out.

    `after` may be the id of another object, whose first span it comes from.
    """
    if not is_on or (tracer := _tracer(os.getpid())) is None:
        return
    from opentelemetry import trace
    from opentelemetry.context import Context

    def context(of: str) -> Any:
        trace_id, span_id = _ids_of(of)
        # Decided by the trace's id, and so alike in all processes.
        sampled = tracer.sampler.should_sample(None, trace_id, name).decision.is_sampled()
        return trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(int(sampled)))

    after = more.pop("after", None)
    _ids.trace, own = _ids_of(about)
    _ids.span = own if first else 0
    parent = Context() if first else trace.set_span_in_context(trace.NonRecordingSpan(context(about)))
    tracer.start_span(
        name,
        context=parent,
        start_time=_nanoseconds(began),
        links=[trace.Link(context(after))] if after else [],
        attributes={f"vbatch.{key}": value for key, value in more.items() if value is not None},
    ).end(_nanoseconds(ended))


def _nanoseconds(at: datetime) -> int:
    return int(at.timestamp() * 1_000_000) * 1000


def prepare() -> None:
    """Load now what the first span would wait for."""
    if is_on:
        _tracer(os.getpid())


def name_request(request: Any, name: str, about: str, *, first: bool = False, **more: Any) -> None:
    """Have a request's time become a span of the object that it made."""
    if is_on and (scope := getattr(request, "scope", None)) is not None:
        scope[_SCOPE_KEY] = (name, about, first, {"request_id": request.request_id, **more})


def of_request(scope: Any, milliseconds: int) -> None:
    """Add the span of a request that just ended, if it has one."""
    if _SCOPE_KEY in scope:
        name, about, first, more = scope[_SCOPE_KEY]
        now = datetime.now(UTC)
        span(about, name, now - timedelta(milliseconds=milliseconds), now, first=first, **more)


def phases(about: str, moments: Iterable[tuple[str, datetime | None]], ended: datetime) -> None:
    """Add a span from each moment to the next one that there is."""
    there = [(name, at) for name, at in moments if at is not None]
    for (name, began), (_, end) in zip(there, [*there[1:], ("", ended)], strict=True):
        span(about, name, began, end)
