"""What programs that watch a server are told: metrics, readiness, logs."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django_q.models import Task
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from batches.states import BatchStatus
from batches.tests.rows import new_batch
from vbatch_site import tally
from vbatch_site.models import Project, Tally
from vbatch_site.tally import Counter
from vbatch_site.tests.servers import MODEL, Server, chat_line, wait_until
from workers.models import ServedModel, Worker

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


def _parse(text: str) -> Values:
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}


def _value(found: Values, name: str, **labels: str) -> float:
    wanted = set(labels.items())
    return sum(value for (known, its), value in found.items() if known == name and wanted <= its)


def _scrape(server: Server) -> Values:
    token = (server.home / "metrics_token").read_text()
    status, headers, text = server.request("GET", "/metrics", key=token)
    assert status == 200, text
    assert headers["content-type"].startswith("text/plain")
    return _parse(text.decode())


@pytest.fixture
def scraper() -> Client:
    return Client(headers={"authorization": f"Bearer {settings.VBATCH_METRICS_TOKEN}"})


@pytest.mark.django_db
def test_metrics_are_for_whoever_has_the_token(scraper: Client, settings: Any) -> None:
    assert scraper.get("/metrics").status_code == 200
    for wrong in ({}, {"authorization": "Bearer "}, {"authorization": "Bearer \u00e4"}, {"authorization": "Basic x"}):
        assert Client().get("/metrics", headers=wrong).status_code == 401
    settings.VBATCH_AUTH = "optional"
    assert Client().get("/metrics").status_code == 200
    assert scraper.post("/metrics").status_code == 405


def test_a_batch_shows_in_the_metrics(sim_server: Server) -> None:
    sim_server.wait(sim_server.create(chat_line("warm")))
    before = _scrape(sim_server)
    batch = sim_server.wait(sim_server.create([chat_line("a"), chat_line("b", "[[sim:400]]"), chat_line("c", "other")]))
    sim_server.request("GET", "/v1/nothing-here")
    sim_server.request("PURGE", "/v1/batches")
    after = before

    def added(name: str, **labels: str) -> float:
        return _value(after, name, **labels) - _value(before, name, **labels)

    def counted() -> bool:
        nonlocal after
        after = _scrape(sim_server)
        return added("vbatch_http_requests_total", method="other") > 0

    # A request is counted a moment after its answer was sent.
    wait_until(counted)
    about = {"project": "default", "model": MODEL}
    assert added("vbatch_lines_total", **about, result="completed") == 2
    assert added("vbatch_lines_total", **about, result="failed") == 1
    usage = batch["usage"]
    assert added("vbatch_tokens_total", **about, kind="input") == usage["input_tokens"] > 0
    assert added("vbatch_tokens_total", **about, kind="output") == usage["output_tokens"] > 0
    for state in ("validating", "in_progress", "finalizing", "completed"):
        assert added("vbatch_batch_moves_total", project="default", to=state) == 1, state
    assert added("vbatch_http_requests_total", method="POST", route="v1/files", status="200") == 1
    assert added("vbatch_http_request_seconds_count", method="POST", route="v1/files") == 1
    assert added("vbatch_http_requests_total", route="other", status="404") == 1
    assert added("vbatch_http_requests_total", method="other") == 1
    assert _value(after, "vbatch_engine_start_seconds_count", model=MODEL, kind="load") >= 1
    assert _value(after, "vbatch_services", model=MODEL, state="running") == 1
    assert _value(after, "vbatch_workers", state="beating") == 1
    assert _value(after, "vbatch_build_info", engine="sim") == 1
    assert _value(after, "vbatch_storage_free_bytes") > 0
    routes = {value for (_, labels), _ in after.items() for name, value in labels if name == "route"}
    assert not [route for route in routes if batch["id"] in route or "nothing-here" in route]


@pytest.mark.django_db
def test_a_scrape_costs_as_many_queries_with_many_rows_as_with_few(scraper: Client) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as seen:
            assert scraper.get("/metrics").status_code == 200
        return len(seen)

    _waiting(Project.default())
    few = queries()
    for number in range(5):
        _waiting(Project.objects.create(name=f"p{number}"))
        Worker.objects.create(pk=f"w{number}", host="h", pid=1)
        tally.count({Counter("lines", number, f"m{number}", "completed"): 1})
    assert queries() == few <= 20


def _waiting(project: Project) -> None:
    batch = new_batch(lines=6, shard_lines=3, project=project)
    batch.move(BatchStatus.IN_PROGRESS, total=6)


@pytest.mark.django_db
def test_the_queue_shows_by_model_and_project(scraper: Client) -> None:
    batch = new_batch(project=Project.objects.create(name="alpha"))
    batch.move(BatchStatus.IN_PROGRESS, total=6)
    type(batch).objects.filter(pk=batch.pk).update(created_at=timezone.now() - timedelta(minutes=5))
    _, first = batch.shards.order_by("index")
    later = timezone.now() + timedelta(minutes=1)
    type(first).objects.filter(pk=first.pk).update(state="leased", lease_expires_at=later, holder="w")
    found = _parse(scraper.get("/metrics").content.decode())
    about = {"project": "alpha", "model": "m"}
    assert _value(found, "vbatch_queue_lines", **about, state="running") == 3
    assert _value(found, "vbatch_queue_lines", **about, state="waiting") == 3
    assert _value(found, "vbatch_queue_oldest_seconds", **about) == 0, "a worker has lines of it"
    type(first).objects.filter(pk=first.pk).update(lease_expires_at=timezone.now() - timedelta(minutes=1))
    found = _parse(scraper.get("/metrics").content.decode())
    assert 299 < _value(found, "vbatch_queue_oldest_seconds", **about) < 320
    assert _value(found, "vbatch_batches", project="alpha", status="in_progress") == 1
    assert 0 < _value(found, "vbatch_queue_deadline_seconds", **about) <= 86_400


@pytest.mark.django_db
def test_folding_keeps_every_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "FOLD_ABOVE", 3)
    for number in range(8):
        tally.count({Counter("a", 1, "m", "x"): number, Counter("b"): 0.5})
    before = {name: dict(rows) for name, rows in tally.totals().items()}
    tally.fold()
    assert {name: dict(rows) for name, rows in tally.totals().items()} == before
    assert before == {"a": {Counter("a", 1, "m", "x"): 28}, "b": {Counter("b"): 4}}
    assert Tally.objects.count() == 2


@pytest.mark.django_db
def test_what_is_unknown_is_not_ready() -> None:
    def ready(query: str = "") -> tuple[int, str, dict[str, str]]:
        answer = Client().get(f"/ready{query}")
        return answer.status_code, answer.json()["status"], answer.json()["checks"]

    status, said, checks = ready()
    assert (status, said) == (503, "unknown")
    assert checks["database"] == checks["storage"] == "ok"
    assert checks["default_cluster"] == checks["gpu_cluster"] == checks["engine"] == "unknown"
    assert ready("?exclude=engine&exclude=default_cluster&exclude=gpu_cluster")[:2] == (200, "ok")
    now = timezone.now()
    Task.objects.create(id="t", name="t", func="f", started=now, stopped=now, success=True, cluster="default")
    worker = Worker.objects.create(pk="w", host="h", pid=1)
    assert ready()[:2] == (503, "unknown"), "no engine has ever been started"
    ServedModel.objects.filter(name=MODEL).update(load_seconds=3.0)
    assert ready()[:2] == (200, "ok")
    ServedModel.objects.filter(name=MODEL).update(load_error="out of memory")
    assert ready()[1] == "failed"
    ServedModel.objects.filter(name=MODEL).update(load_error="")
    Worker.objects.filter(pk=worker.pk).update(seen_at=now - timedelta(minutes=1))
    status, said, checks = ready()
    assert (status, said, checks["gpu_cluster"]) == (503, "failed", "failed")


def test_storage_that_can_not_be_written_is_not_ready(tmp_path: Path, settings: Any) -> None:
    settings.FILE_UPLOAD_TEMP_DIR = tmp_path / "not-there"
    from files.watch import storage_verdict

    assert storage_verdict(timezone.now()) == "failed"


def _lines(server: Server) -> Iterator[dict[str, Any]]:
    # What is behind the last newline is still being written.
    *lines, _ = server.log.read_bytes().split(b"\n")
    for line in lines:
        if line.startswith(b"{"):
            yield json.loads(line)


class Collector:
    """What OpenTelemetry's spans are sent to."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in sent.resource_spans:
                    (name,) = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                    assert name == "vbatch"
                    spans.extend(span for scope in resource.scope_spans for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self._server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }

    def __enter__(self) -> "Collector":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _check_traces(spans: list[Any], batch_id: str, file_id: str, shard: int) -> None:
    """A trace leads from the upload to the result, through all processes."""
    trace = bytes.fromhex(batch_id.removeprefix("batch_"))
    named = {span.name: span for span in spans if span.trace_id == trace}
    assert set(named) == {"batch", "create", "validating", "in_progress", "finalizing", "shard"}
    batch = named.pop("batch")
    assert not batch.parent_span_id
    assert {span.parent_span_id for span in named.values()} == {batch.span_id}

    def about(span: Any) -> dict[str, Any]:
        return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}

    assert about(batch)["vbatch.batch"] == about(named["shard"])["vbatch.batch"] == batch_id
    assert (about(batch)["vbatch.status"], about(batch)["vbatch.lines"]) == ("completed", 2)
    assert (about(named["shard"])["vbatch.shard"], about(named["shard"])["vbatch.outcome"]) == (shard, "done")
    assert about(named["create"])["vbatch.request_id"].startswith("req_")
    order = [named[name] for name in ("validating", "in_progress", "finalizing")]
    assert order[0].start_time_unix_nano == batch.start_time_unix_nano
    assert order[-1].end_time_unix_nano == batch.end_time_unix_nano
    assert all(one.end_time_unix_nano == two.start_time_unix_nano for one, two in pairwise(order))
    running = order[1]
    assert running.start_time_unix_nano <= named["shard"].start_time_unix_nano < named["shard"].end_time_unix_nano
    (link,) = batch.links
    (upload,) = [span for span in spans if (span.trace_id, span.span_id) == (link.trace_id, link.span_id)]
    assert (upload.name, about(upload)["vbatch.file"]) == ("upload", file_id)
    assert upload.start_time_unix_nano < upload.end_time_unix_nano <= running.start_time_unix_nano


def test_logs_and_traces_name_requests_batches_and_shards(new_home: Path) -> None:
    with Collector() as collector, Server(new_home, VBATCH_LOG_FORMAT="json", **collector.settings) as server:
        batch_id = server.create([chat_line("a"), chat_line("b")])
        file_id = server.wait(batch_id)["input_file_id"]
        headers = server.request("GET", f"/v1/batches/{batch_id}?secret=1")[1]
        chat = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
        live = server.request("POST", "/v1/chat/completions", chat)[1]
        requests = [headers["x-request-id"], live["x-request-id"]]
        wait_until(lambda: set(requests) <= {line.get("request_id") for line in _lines(server)})
        # The queue writes a task down a moment after it has ended.
        wait_until(lambda: server.request("GET", "/ready", key=None)[0] == 200)
        # Sent while it runs, and not only at the end.
        steps = {"validating", "in_progress", "finalizing"}
        wait_until(lambda: {"batch", "shard", "upload", "create"} | steps <= {span.name for span in collector.spans})
        wait_until(lambda: {"batch_completed", "shard_done"} <= {line.get("action") for line in _lines(server)})
        lines = list(_lines(server))
    by_action: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        assert {"at", "level", "logger", "message"} <= set(line), line
        by_action.setdefault(line.get("action", ""), []).append(line)
    asked = next(line for line in by_action["http_request"] if line.get("request_id") == headers["x-request-id"])
    assert asked["batch"] == batch_id
    assert asked["route"] == "v1/batches/<str:batch_id>"
    assert asked["path"] == f"/v1/batches/{batch_id}"
    assert (asked["method"], asked["status"]) == ("GET", 200)
    created = next(line for line in by_action["batch_created"] if line["batch"] == batch_id)
    assert created["request_id"].startswith("req_")
    for action in ("batch_in_progress", "batch_finalizing", "batch_completed"):
        assert [line["batch"] for line in by_action[action]] == [batch_id], action
    claimed, done = by_action["shard_claimed"], by_action["shard_done"]
    assert [line["shard"] for line in claimed] == [line["shard"] for line in done]
    assert claimed[0]["batch"] == batch_id
    assert claimed[0]["lines"] == 2
    _check_traces(collector.spans, batch_id, file_id, claimed[0]["shard"])
