"""A server with something of everything in it, for pictures and for looking around."""

import json
from collections.abc import Callable
from typing import Any

from vbatch_site.tests.browsers import make_user
from vbatch_site.tests.servers import MODEL, Server

_ROWS = """
from datetime import timedelta
from django.utils import timezone
from batches.models import Batch, BatchEvent
from batches.webhooks import endpoints
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
for status, days in (("expired", 2), ("cancelled", 3), ("validating", 0), ("finalizing", 0), ("cancelling", 0)):
    at = now - timedelta(days=days, minutes=7)
    b = Batch(
        id=f"batch_{status:a<20}{days}f3e9c1", project=o, status=status, endpoint="/v1/chat/completions",
        input_file_id="file-gone0000000000000000", completion_window="24h", created_at=at,
        expires_at=at + timedelta(hours=24), model="Qwen/Qwen2.5-3B-Instruct", total=50000 if days else 0,
        completed=31207 if days else 0, failed=112 if days else 0, in_progress_at=at + timedelta(seconds=4),
        purged_at=now if days else None, rung_at=now + timedelta(days=1),
        metadata={"description": "Translate the support tickets of the third quarter, second try", "team": "research"},
    )
    if status in ("expired", "cancelled"):
        setattr(b, f"{status}_at", at + timedelta(hours=20))
    b.save()
    BatchEvent.objects.create(batch=b, at=at, status="validating")
    BatchEvent.objects.create(batch=b, at=at + timedelta(seconds=4), status=status)
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
    server.manage("shell", "-v0", "-c", _ROWS)
    server.wait(running, 60, ["in_progress"])
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
    }
    assert json.dumps(found)
    assert MODEL
    return found
