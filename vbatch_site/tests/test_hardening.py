"""What holds against people who mean harm: headers, hosts, names of files, sizes, logs, and the engines' own ports."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.contrib.auth import get_user_model
from django.test import Client

from vbatch_site.models import ApiKey, Project
from vbatch_site.tests.contract.forms import multipart
from vbatch_site.tests.servers import MODEL, ROOT, Server, chat_line
from vbatch_site.tests.test_tenancy import PAGES, PUBLIC

FORM = {"Content-Type": "multipart/form-data; boundary=edge"}


def _check_deploy(**env: str) -> str:
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return "" if done.returncode == 0 else done.stdout


def test_production_settings_pass_djangos_deployment_checks() -> None:
    production = {"VBATCH_HTTPS": "on", "VBATCH_ALLOWED_HOSTS": "batch.example.org", "VBATCH_ENGINE": "vllm"}
    assert _check_deploy(**production) == ""
    said = _check_deploy(VBATCH_AUTH="optional", VBATCH_ENGINE="vllm")
    for name in ("security.W004", "security.W008", "security.W012", "security.W016", "vbatch.W001", "vbatch.W002"):
        assert name in said


@pytest.mark.django_db
def test_cookies_redirects_and_hsts_follow_the_https_setting(settings: Any) -> None:
    get_user_model().objects.create_superuser("op", password="x")
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = settings.SECURE_SSL_REDIRECT = True
    settings.SECURE_HSTS_SECONDS, settings.SECURE_PROXY_SSL_HEADER = 60, ("HTTP_X_FORWARDED_PROTO", "https")
    plain = Client().get("/v1/files")
    assert (plain.status_code, plain.headers["location"]) == (301, "https://testserver/v1/files")
    assert Client().get("/health").status_code in (200, 503)
    client = Client(headers={"x-forwarded-proto": "https"})
    answer = client.post("/admin/login/", {"username": "op", "password": "x"})
    assert answer.headers["strict-transport-security"].startswith("max-age=60")
    for cookie in answer.cookies.values():
        assert cookie["secure"], cookie
    assert answer.cookies["sessionid"]["httponly"]


def _policy(answer: Any) -> dict[str, str]:
    header = answer.headers["content-security-policy"]
    return dict(part.strip().split(" ", 1) for part in header.split(";"))


@pytest.mark.django_db
@pytest.mark.parametrize("path", [*(r.path for r in PAGES if not r.parameters), *PUBLIC])
def test_no_page_has_an_inline_script_and_every_policy_forbids_them(path: str) -> None:
    client = Client()
    client.force_login(get_user_model().objects.create_superuser("op", password="x"))
    answer = client.get(path, headers={"Accept": "text/html"})
    policy = _policy(answer)
    scripts = policy.get("script-src", policy["default-src"])
    assert "unsafe-inline" not in scripts
    # Unfold's menus need Alpine, and Alpine needs to compile its attributes.
    assert ("unsafe-eval" in scripts) <= path.startswith(("/admin/", "/console"))
    assert policy["frame-ancestors"] == "'none'"
    if not answer.headers.get("content-type", "").startswith("text/html") or answer.streaming:
        return
    page = answer.content.decode()
    for tag, text in re.findall(r"<script\b([^>]*)>(.*?)</script>", page, re.DOTALL):
        is_data = "application/json" in tag
        assert is_data or ("src=" in tag and not text.strip()), f"{path}: <script{tag}>{text[:100]}"
    assert not re.findall(r"<[a-z]+\b[^>]*\son[a-z]+=\"[^\"]*\"", page)
    assert "javascript:" not in page
    assert not re.findall(r'<(?:script|link|img)\b[^>]*(?:src|href)="(?:https?:)?//', page)


@pytest.mark.django_db
def test_the_api_answers_may_load_nothing() -> None:
    key = ApiKey.issue(Project.default(), "x")[1]
    answer = Client().get("/v1/files", headers={"Authorization": f"Bearer {key}"})
    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/v1/files", "/admin/", "/"])
def test_a_host_that_is_not_ours_is_refused(settings: Any, path: str) -> None:
    settings.ALLOWED_HOSTS = ["batch.example.org"]
    key = ApiKey.issue(Project.default(), "x")[1]
    headers = {"Authorization": f"Bearer {key}", "Accept": "text/html"}
    assert Client().get(path, headers={**headers, "Host": "evil.example"}).status_code == 400
    assert Client().get(path, headers={**headers, "Host": "batch.example.org"}).status_code in (200, 302)


@pytest.mark.parametrize(
    "name",
    [
        "../../../evil",
        "..\\..\\evil",
        "/etc/evil",
        "evil\0.jsonl",
        "e" * 3000,
        "C:\\evil",
        "....//evil",
        "evil/../../x",
        ".",
    ],
    ids=lambda name: repr(name[:20]),
)
def test_an_uploads_filename_is_never_a_path(sim_server: Server, name: str) -> None:
    form = multipart([("purpose", None, "vision"), ("file", name, b"content")])
    status, _, file = sim_server.request("POST", "/v1/files", form, headers=FORM)
    if status == 200:
        assert len(file["filename"]) <= 512
        assert not re.search(r"[\x00/]", file["filename"])
        ((path,),) = sim_server.query("SELECT path FROM files_file WHERE id = %s", file["id"])
        assert path == f"{file['id'][-2:]}/{file['id']}"
        _, headers, content = sim_server.request("GET", f"/v1/files/{file['id']}/content")
        assert content == b"content"
        assert "\n" not in headers["content-disposition"]
        sim_server.request("DELETE", f"/v1/files/{file['id']}")
    else:
        assert status == 400, file
    wanted = {"bytes": 0, "filename": name, "mime_type": "text/plain", "purpose": "vision"}
    status, _, upload = sim_server.request("POST", "/v1/uploads", wanted)
    assert status == 400 or not re.search(r"[\x00/]", upload["filename"])
    stray = [p for p in sim_server.home.rglob("*") if "evil" in p.name or "eeee" in p.name]
    assert not stray
    assert not list(sim_server.home.parent.glob("*evil*"))
    assert not Path("/etc/evil").exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/batches"),
        ("POST", "/v1/uploads"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/admin/login/"),
        ("POST", "/console/keys/issue"),
        ("POST", "/"),
        ("GET", "/v1/files"),
    ],
)
def test_no_route_takes_a_body_without_end(sim_server: Server, method: str, path: str) -> None:
    for kind in ("application/json", "application/x-www-form-urlencoded"):
        headers = {"Content-Type": kind, "Content-Length": str(10**10)}
        status, _, answer = sim_server.request(method, path, b"", headers=headers)
        assert status == 413, (kind, answer)


MARKER = "pineapple-on-the-moon"


def test_prompts_answers_and_keys_are_in_no_log_and_no_error(new_home: Path) -> None:
    quiet = {"VBATCH_LOG_LEVEL": "DEBUG", "VBATCH_SIM_REQUEST_LOG": ""}
    with Server(new_home, **quiet) as server:
        good = server.create([chat_line("a", MARKER), chat_line("b", f"[[sim:400]] {MARKER}"), chat_line("c", MARKER)])
        assert server.wait(good)["status"] == "completed"
        outputs, _ = server.lines(server.batch(good))
        assert outputs, "the marker has been through the engine"
        broken = chat_line("a", MARKER).rstrip()[:-1] + "\n"
        refused = server.wait(server.create([chat_line("a"), broken]))
        assert refused["status"] == "failed"
        assert MARKER not in json.dumps(refused)
        chat = {"model": MODEL, "messages": [{"role": "user", "content": MARKER}]}
        assert server.request("POST", "/v1/chat/completions", chat)[0] == 200
        for wrong in ({**chat, "max_tokens": "x"}, {**chat, "model": "nobody"}, {"input_file_id": MARKER * 9}):
            for path in ("/v1/chat/completions", "/v1/batches"):
                assert server.request("POST", path, wrong)[0] >= 400
        unknown = server.request("GET", "/v1/files", key="sk-vb-" + MARKER)[2]
        assert MARKER not in json.dumps(unknown)
        texts = server.query(
            "SELECT string_agg(t::text, ' ') FROM (SELECT a::text AS t FROM vbatch_site_auditentry a UNION ALL "
            "SELECT e::text FROM batches_batchevent e UNION ALL SELECT q::text FROM django_q_task q UNION ALL "
            "SELECT o.payload FROM django_q_ormq o UNION ALL SELECT s::text FROM workers_service s) AS rows"
        )[0][0]
        key = server.key
        server.stop()
    assert MARKER not in texts
    assert key not in texts
    logs = [server.log, *(path for path in (new_home / "logs").rglob("*") if path.is_file())]
    assert sum(len(path.read_bytes()) for path in logs) > 300, "the logs were written"
    for log in logs:
        written = log.read_text(errors="replace")
        assert MARKER not in written, log
        # The first start shows a key to whoever started it, once.
        assert key not in written.replace(f"Key      {key}\n", "", int(log == server.log)), log


def test_an_engine_listens_on_loopback_only_and_wants_its_key(sim_server: Server) -> None:
    assert sim_server.wait(sim_server.create(chat_line("a")))["status"] == "completed"
    process = sim_server.engine()
    addresses = {c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert addresses
    assert {address.ip for address in addresses} == {"127.0.0.1"}
    engine = Server.__new__(Server)
    engine.port = next(iter(addresses)).port
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Bearer {sim_server.key}"}):
        for path in ("/v1/models", "/v1/chat/completions"):
            assert engine.request("GET", path, key=None, headers=headers)[0] == 401, path
    # The key is not in the arguments, which every user of the machine can read.
    secret = process.environ()["VLLM_API_KEY"]
    assert secret not in " ".join(process.cmdline())
    assert engine.request("GET", "/v1/models", key=secret)[0] == 200


def test_no_locked_package_has_a_known_vulnerability() -> None:
    done = subprocess.run([sys.executable, "scripts/audit"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip().splitlines()[-1])
    assert done.returncode == 0, done.stdout


def test_the_pages_that_need_no_login_do_nothing_that_their_policy_forbids(sim_server: Server) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    from vbatch_site.tests.browsers import Watch, chromium, path_of_chromium

    if path_of_chromium() is None:
        if os.environ.get("CI"):
            pytest.fail("there is no chromium")
        pytest.skip("there is no chromium")
    with playwright.sync_playwright() as starter, chromium(starter) as browser:
        page = browser.new_page(base_url=f"http://127.0.0.1:{sim_server.port}")
        page.set_default_timeout(60_000)
        watch = Watch(page, sim_server)
        page.goto("/docs/")
        # Swagger has drawn the description that it loaded.
        page.wait_for_selector(".opblock")
        page.goto("/", wait_until="load")
    assert not watch.faults
