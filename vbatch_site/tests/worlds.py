"""A server with something of everything in it, for pictures and for looking around."""

import json
from collections.abc import Callable
from typing import Any

from vbatch_site.tests.browsers import make_user
from vbatch_site.tests.servers import MODEL, Server

_ROWS = """
from datetime import timedelta
from uuid import uuid4
from django.utils import timezone
from batches.models import Batch, BatchEvent
from batches.webhooks import endpoints
from batches.webhooks.models import WebhookDelivery
from vbatch_site.models import ApiKey, Project
from workers.models import ServedModel, Service, Worker
now = timezone.now()
p = Project.default()
o, _ = Project.objects.get_or_create(name="research")
ApiKey.issue(p, "nightly jobs")
ApiKey.issue(o, "notebook", scopes=["batches", "read-only"], expires_at=now + timedelta(days=3))
k, _ = ApiKey.issue(p, "old laptop"); ApiKey.objects.filter(pk=k.pk).update(revoked_at=now)
e, _ = endpoints.create(
    o, {"name": "slack", "url": "https://hooks.example.com/services/T000/B000", "event_types": ["batch.completed"]}
)
ServedModel.objects.filter(name__contains="gemma").update(
    load_error="CUDA out of memory. Tried to allocate 2.3 GiB.", load_failed_at=now
)
ServedModel.objects.filter(name__contains="0.5B").update(enabled=False)
w = Worker.objects.create(
    pk="gpu-07-4711-ab12cd34", host="gpu-07", pid=4711, started_at=now - timedelta(hours=5),
    seen_at=now - timedelta(minutes=2),
)
Service.objects.create(
    model=ServedModel.objects.first(), worker=w, state="failed", created_at=now - timedelta(hours=4),
    ended_at=now - timedelta(hours=4), error="The process died.",
)
told = [
    ("cancelled", 72, "Translate the support tickets of the third quarter, second try"),
    ("expired", 48, "Embeddings of the whole catalogue"),
    ("cancelling", 0.3, "Product descriptions, spring"), ("finalizing", 0.2, "Labels for the review set"),
    ("validating", 0.1, "Meeting notes, week 46"),
]
for status, hours, description in told:
    at = now - timedelta(hours=hours)
    ended = status in ("expired", "cancelled")
    b = Batch(
        id=f"batch_{uuid4().hex}", project=o, status=status, endpoint="/v1/chat/completions",
        input_file_id="file-gone0000000000000000", completion_window="24h", created_at=at,
        expires_at=at + timedelta(hours=24), model="Qwen/Qwen2.5-3B-Instruct",
        total=0 if status == "validating" else 50000,
        completed={"finalizing": 49871, "validating": 0}.get(status, 31207),
        failed={"finalizing": 129, "validating": 0}.get(status, 112),
        in_progress_at=None if status == "validating" else at + timedelta(seconds=4),
        purged_at=now if ended else None, rung_at=now,
        metadata={"description": description, "team": "research"},
    )
    end = at + timedelta(hours=20)
    if ended:
        setattr(b, f"{status}_at", end)
    b.save()
    BatchEvent.objects.create(batch=b, at=at, status="validating")
    if status != "validating":
        BatchEvent.objects.create(batch=b, at=at + timedelta(seconds=4), status="in_progress")
        BatchEvent.objects.create(batch=b, at=end if ended else now - timedelta(minutes=3), status=status)
for state, attempts, code, error in (
    ("delivered", 1, 200, ""), ("retrying", 3, 503, ""),
    ("exhausted", 12, None, "The receiver did not answer in 10 s."),
):
    WebhookDelivery.objects.create(
        id=f"whd_{uuid4().hex[:24]}", endpoint=e, project=o, batch_id=b.pk, event_id=f"evt_{uuid4().hex[:24]}",
        event_type="batch.completed", payload=b'{"type":"batch.completed","data":{"id":"batch_6b01"}}',
        host="hooks.example.com", state=state, attempts=attempts, last_code=code, last_error=error, milliseconds=184,
        next_attempt_at=now + timedelta(hours=2) if state == "retrying" else None, give_up_at=now + timedelta(days=3),
        log=[{
            "at": int(now.timestamp()), "headers": {"webhook-id": "whd_1", "content-type": "application/json"},
            "status": code, "error": error, "milliseconds": 184, "body": "busy" if code == 503 else "",
        }] * min(attempts, 3),
    )
"""


def furnish(server: Server, line: Callable[..., str]) -> dict[str, str]:
    """Fill a server whose simulated engine is slow enough that a batch stays unfinished; return ids by kind."""
    make_user(server)
    talk = [line(f"ticket-{i:05}", f"Summarise support ticket {i} in one sentence, please.") for i in range(1, 241)]
    bad = [line("a-1"), "this is no JSON\n", line("a-1"), line("a-4", model="no/such-model")]
    done = [line(f"q-{i}", f"Question {i}: which rivers flow through the town?") for i in range(1, 31)]
    done[6] = line("q-7", "[[sim:400]] too long for the model")
    done[13] = line("q-14", "[[sim:500]] a fault of the engine")
    completed = server.create(done, metadata={"description": "Geography quiz", "team": "content"})
    server.wait(completed, 120)
    failed = server.create(bad, metadata={"description": "Hand-made file"})
    server.wait(failed, 60)
    running = server.create(talk, metadata={"description": "Support tickets, October"})
    # Before the command, which may take longer than the batch.
    server.wait(running, 60, ["in_progress"])
    server.manage("shell", "-v0", "-c", _ROWS)
    batch = server.batch(completed)
    service = server.query("SELECT id FROM workers_service ORDER BY id DESC LIMIT 1")[0][0]
    found: dict[str, Any] = {
        "completed": completed,
        "failed": failed,
        "in_progress": running,
        "bad_line": "7",
        "file": batch["input_file_id"],
        "bad_file": server.batch(failed)["input_file_id"],
        "service": str(service),
        "worker": "gpu-07-4711-ab12cd34",
        "delivery": server.query("SELECT id FROM batches_webhookdelivery WHERE state = 'exhausted'")[0][0],
    }
    assert json.dumps(found)
    assert MODEL
    return found


_HISTORY = """
from datetime import timedelta
from math import sin
from random import Random
from django.db.models import F
from django.utils import timezone
from batches.models import Batch, BatchEvent, Sample
from batches.samples import stretch
from files.models import File
now, chance = timezone.now(), Random(7)
b = Batch.objects.get(pk={batch!r})
began, done, tokens = stretch(now - timedelta(minutes=38)), 0, 0
for i in range(38 * 6 + 1):
    rate = 12 + 2 * sin(i / 31) + chance.gauss(0, 0.5)
    if 70 <= i < 78:
        rate = 1 if i > 72 else 0
    lines = max(int(10 * rate), 0)
    if lines:
        Sample.objects.update_or_create(
            batch=b, model=b.model, at=began + timedelta(seconds=10 * i),
            defaults={{"lines": lines, "output_tokens": lines * 96, "input_tokens": lines * 310,
                      "cached_tokens": lines * 180, "milliseconds": lines * 800}},
        )
    done, tokens = done + lines, tokens + lines
Batch.objects.filter(pk=b.pk).update(
    created_at=began - timedelta(seconds=3), in_progress_at=began, total=F("total") + done + 12000,
    completed=F("completed") + done - 37, failed=37, input_tokens=F("input_tokens") + tokens * 310,
    output_tokens=F("output_tokens") + tokens * 96, cached_tokens=F("cached_tokens") + tokens * 180,
    expires_at=began + timedelta(hours=24),
)
# As large a file as so many lines have.
File.objects.filter(pk=b.input_file_id).update(bytes=F("bytes") * 5)
b.events.filter(status="validating").update(at=began - timedelta(seconds=3))
b.events.filter(status="in_progress").update(at=began)
for kind, i in (("pause", 70), ("resume", 78)):
    at = began + timedelta(seconds=10 * i)
    BatchEvent.objects.create(batch=b, at=at, kind=kind, status="in_progress", reason="by boss")
rows = [*BatchEvent.objects.order_by("at", "id")]
BatchEvent.objects.all().delete()
for row in rows:
    row.pk = None
BatchEvent.objects.bulk_create(rows)
other = Batch.objects.get(status="finalizing")
for i in range(60, 200):
    lines = int(10 * (41 + 6 * sin(i / 17) + chance.gauss(0, 1.5)))
    Sample.objects.create(
        batch=other, model=other.model, at=began + timedelta(seconds=10 * i), lines=lines, output_tokens=lines * 64
    )
"""


def lengthen(server: Server, line: Callable[..., str]) -> str:
    """Add a batch that has run for most of an hour and goes on while pictures are taken; return its id."""
    talk = [line(f"ticket-{i:05}", f"Summarise support ticket {i} in one sentence, please.") for i in range(1, 9001)]
    batch_id = server.create(talk, metadata={"description": "Support tickets, October", "team": "support"})
    server.wait(batch_id, 60, ["in_progress"])
    server.manage("shell", "-v0", "-c", _HISTORY.format(batch=batch_id))
    return batch_id
