"""What is deleted is gone, bytes included; what has had its time is swept."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone
from django_q.models import Failure, OrmQ

from batches.models import Batch
from batches.states import BatchStatus
from batches.sweep import sweep
from batches.tasks import remove_bytes
from files import storage
from files.models import File
from files.uploads import announce
from vbatch_site import audit, erasure, tasks
from vbatch_site.models import ApiKey, AuditEntry, IdempotencyKey, Project
from vbatch_site.tests.contract.forms import multipart
from vbatch_site.tests.servers import MODEL, Server, chat_line, is_alive, wait_until, words_of


def _file(project: Project, purpose: str = "batch") -> File:
    file = announce(project, purpose, "a", 1, None)
    with storage.writing(file.path) as out:
        out.write(b"x")
    file.arrive()
    return file


def _batch(project: Project, file_id: str) -> Batch:
    return Batch.begin(
        window=timedelta(hours=24),
        project=project,
        endpoint="/v1/chat/completions",
        input_file_id=file_id,
        completion_window="24h",
    )


def _stored(file: File) -> bool:
    return (Path(settings.VBATCH_HOME) / "files" / file.path).exists()


def _tenant(name: str = "tenant") -> tuple[Project, dict[str, str]]:
    project = Project.objects.create(name=name)
    return project, {"Authorization": f"Bearer {ApiKey.issue(project, 'test')[1]}"}


@pytest.mark.django_db
@pytest.mark.parametrize("is_lost", [False, True], ids=["at once", "with the next sweep"])
def test_a_deleted_files_bytes_go(is_lost: bool) -> None:
    project, bearer = _tenant()
    gone, kept = _file(project), _file(project)
    Client().delete(f"/v1/files/{gone.pk}", headers=bearer)
    # The task is queued with the deletion; one that is lost is made up for.
    assert OrmQ.objects.get().func() == "batches.tasks.remove_bytes"
    sweep() if is_lost else remove_bytes()
    assert (_stored(gone), _stored(kept)) == (False, True)
    assert list(File.objects.all()) == [kept]


@pytest.mark.django_db
def test_an_id_with_a_zero_byte_is_nobodys() -> None:
    project, bearer = _tenant()
    file = _file(project)
    answer = Client().delete(f"/v1/files/{file.pk}%00", headers=bearer)
    assert (answer.status_code, File.objects.get().deleted_at) == (404, None)


@pytest.mark.django_db
def test_a_deleted_file_that_a_batch_reads_goes_when_the_batch_has_ended() -> None:
    project, bearer = _tenant()
    file = _file(project)
    batch = _batch(project, file.pk)
    Client().delete(f"/v1/files/{file.pk}", headers=bearer)
    sweep()
    assert _stored(file)
    assert Client().get(f"/v1/files/{file.pk}", headers=bearer).status_code == 404
    batch.move(BatchStatus.FAILED)
    sweep()
    assert not _stored(file)


@pytest.mark.django_db
def test_a_file_that_can_not_be_removed_keeps_nothing_else_from_being_swept(tmp_path: Path) -> None:
    project, _ = _tenant()
    stuck = _file(project)
    path = Path(settings.VBATCH_HOME) / "files" / stuck.path
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    File.objects.update(deleted_at=timezone.now())
    old = timezone.now() - timedelta(days=2)
    IdempotencyKey.objects.create(project=project, key="old", fingerprint="", object_id="x", created_at=old)
    with pytest.raises(OSError):
        sweep()
    assert not IdempotencyKey.objects.exists()
    path.rename(tmp_path / "elsewhere")
    sweep()
    assert not File.objects.exists()


@pytest.mark.django_db
def test_an_expired_file_goes_as_a_deleted_one_does() -> None:
    project, _ = _tenant()
    file = _file(project)
    File.objects.update(expires_at=timezone.now())
    sweep()
    assert not _stored(file)
    assert not File.objects.exists()


@pytest.mark.django_db
def test_a_project_deleted_in_the_admin_is_closed_at_once_and_gone_with_its_task(client: Client) -> None:
    client.force_login(get_user_model().objects.create_superuser("op", password="x"))
    project, bearer = _tenant()
    other = _file(_tenant("other")[0])
    file = _file(project)
    _batch(project, file.pk)
    page = client.get(f"/admin/vbatch_site/project/{project.pk}/delete/").content.decode()
    assert "files and their bytes" in page
    client.post(f"/admin/vbatch_site/project/{project.pk}/delete/", {"post": "yes"})
    assert Client().get("/v1/files", headers=bearer).status_code == 401
    assert OrmQ.objects.count() == 1
    assert OrmQ.objects.get().func() == "vbatch_site.tasks.erase"
    assert tasks.erase(project.pk)
    assert not Project.objects.filter(name="tenant").exists()
    assert (_stored(file), _stored(other)) == (False, True)
    assert not Batch.objects.exists()
    # Twice is no harm, and the audit remembers.
    assert tasks.erase(project.pk)
    assert AuditEntry.objects.filter(action="delete project", actor="op").exists()


@pytest.mark.django_db
def test_the_sweep_goes_on_with_a_project_whose_deletion_was_cut_off() -> None:
    project, _ = _tenant()
    file = _file(project)
    erasure.close(project)
    sweep()
    assert not _stored(file)
    assert not Project.objects.filter(name="tenant").exists()


@pytest.mark.django_db
def test_a_file_that_arrives_while_its_project_is_deleted_leaves_nothing() -> None:
    project, _ = _tenant()
    file = announce(project, "vision", "a", 1, None)
    erasure.close(project)
    assert erasure.erase(project)
    assert not File.objects.exists()
    with pytest.raises(Exception, match=file.pk):
        file.arrive()


def test_the_command_deletes_a_project_with_all_it_has_while_its_batch_runs(sim_server: Server) -> None:
    server, name = sim_server, "doomed"
    key = server.new_key(name)
    project_id = server.query("SELECT id FROM vbatch_site_project WHERE name = %s", name)[0][0]
    kind = {"Content-Type": "multipart/form-data; boundary=edge"}

    def ask(method: str, path: str, body: Any = None, **headers: str) -> dict[str, Any]:
        status, _, answer = server.request(method, path, body, key=key, headers=headers)
        assert status == 200, answer
        return dict(answer)

    def start(text: str, count: int) -> str:
        form = multipart([("purpose", None, "batch"), ("file", "f.jsonl", "".join(
            chat_line(str(i), f"{text} {i}") for i in range(count)
        ))])  # fmt: skip
        file_id = ask("POST", "/v1/files", form, **kind)["id"]
        wanted = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        return str(ask("POST", "/v1/batches", wanted, **{"Idempotency-Key": text})["id"])

    def until(batch_id: str, *states: str) -> dict[str, Any]:
        deadline = time.monotonic() + 120
        while (batch := ask("GET", f"/v1/batches/{batch_id}"))["status"] not in states:
            assert time.monotonic() < deadline, batch
            time.sleep(0.05)
        return batch

    ended = until(start("doomed", 3), "completed")
    assert ended["output_file_id"]
    running = start("[[sim:hang]] doomed", 2)
    until(running, "in_progress")
    wanted = {"bytes": 9, "filename": "f", "mime_type": "text/plain", "purpose": "vision"}
    upload = ask("POST", "/v1/uploads", wanted)["id"]
    ask("POST", f"/v1/uploads/{upload}/parts", multipart([("data", "p", b"part")]), **kind)
    mine = {path for (path,) in server.query(
        "SELECT path FROM files_file WHERE project_id = %s UNION ALL SELECT path FROM files_uploadpart p "
        "JOIN files_upload u ON u.id = p.upload_id WHERE u.project_id = %s", project_id, project_id
    )}  # fmt: skip
    assert len(mine) == 4
    assert all((server.home / "files" / path).exists() for path in mine)

    config = {"environment": {"VLLM_MODEL": MODEL}, "resources": {"gpu": None}}
    service = ask("POST", "/api/v1/services", {"recipe_name": "inference/vllm", "config": config})

    def is_running() -> bool:
        return bool(ask("GET", f"/api/v1/services/{service['id']}")["status"] == "running")

    wait_until(is_running, 120, 0.2)
    processes = [p for p in server.service_processes() if service["name"] in " ".join(words_of(p))]
    assert processes

    assert name in server.manage("delete_project", name, "--yes")

    wait_until(lambda: not any(map(is_alive, processes)))
    assert not (server.home / "services" / service["name"]).exists()

    assert not [path for path in mine if (server.home / "files" / path).exists()]
    assert not list((server.home / "files" / "batches").glob(f"{ended['id']}*"))
    assert not list((server.home / "files" / "batches").glob(f"{running}*"))
    tables = server.query(
        "SELECT c.conrelid::regclass::text, a.attname FROM pg_constraint c JOIN pg_attribute a "
        "ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1] WHERE c.confrelid = 'vbatch_site_project'::regclass"
    )
    assert len(tables) >= 6
    for table, column in tables:
        assert server.query(f"SELECT count(*) FROM {table} WHERE {column} = %s", project_id) == [(0,)], table  # noqa: S608
    for table in ("shard", "result", "batchevent", "sample"):
        statement = f"SELECT count(*) FROM batches_{table} WHERE batch_id IN (%s, %s)"  # noqa: S608
        assert server.query(statement, ended["id"], running) == [(0,)], table
    assert server.request("GET", "/v1/files", key=key)[0] == 401
    # The server goes on with the others.
    assert server.wait(server.create(chat_line("after")))["status"] == "completed"


@pytest.mark.django_db
def test_the_command_asks_before_it_deletes(monkeypatch: pytest.MonkeyPatch) -> None:
    project, _ = _tenant()
    monkeypatch.setattr("builtins.input", lambda _: "no")
    with pytest.raises(CommandError):
        call_command("delete_project", project.name)
    with pytest.raises(CommandError):
        call_command("delete_project", "nobody", "--yes")
    project.refresh_from_db()
    assert project.deleted_at is None


@pytest.mark.django_db
def test_failed_tasks_keys_of_requests_and_the_audit_have_their_time() -> None:
    now = timezone.now()
    project, _ = _tenant()
    for days in (29, 31):
        at = now - timedelta(days=days)
        Failure.objects.create(id=str(days), name=str(days), func="x", started=at, stopped=at, success=False)
    for hours in (23, 25):
        at = now - timedelta(hours=hours)
        IdempotencyKey.objects.create(project=project, key=str(hours), fingerprint="", object_id="x", created_at=at)
    audit.note("kept")
    AuditEntry.objects.create(at=now - timedelta(days=366), via="api", actor="x", action="old")
    sweep()
    assert [failure.id for failure in Failure.objects.all()] == ["29"]
    assert [key.key for key in IdempotencyKey.objects.all()] == ["23"]
    assert AuditEntry.objects.filter(action="kept").exists()
    assert not AuditEntry.objects.filter(action="old").exists()
