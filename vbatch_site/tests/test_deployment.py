"""The files in docs/deploy are held against the code, and run as far as a machine without Docker and systemd can."""

import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from django.conf import settings
from django.test import Client

from vbatch_site.tests.servers import MODEL, ROOT, Server, chat_line, free_port, new_database, wait_until

DEPLOY = ROOT / "docs" / "deploy"
BIN = Path(sys.executable).parent
UNITS = ["vbatch-web", "vbatch-default", "vbatch-gpu"]


def _tool(name: str, package: str) -> str:
    """Return a program's path; without it the test is skipped, and fails in CI."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        reason = f"{name} is not installed (on Debian: apt-get install {package})"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return found


# Prometheus and Grafana.


@pytest.fixture
def exported(db: None) -> str:
    token = {"authorization": f"Bearer {settings.VBATCH_METRICS_TOKEN}"}
    return Client(headers=token).get("/metrics").content.decode()


def _names(exported: str) -> set[str]:
    """Return every series' name that a server may export: those of families without a sample yet too."""
    found = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", exported, re.MULTILINE):
        found |= {name}
        if kind in ("summary", "histogram"):
            found |= {f"{name}_count", f"{name}_sum"}
        if kind == "histogram":
            found |= {f"{name}_bucket"}
    return found


def _alerts() -> list[dict[str, Any]]:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    return [rule for group in rules["groups"] for rule in group["rules"]]


def _panels() -> list[dict[str, Any]]:
    return list(json.loads((DEPLOY / "grafana" / "vbatch.json").read_text())["panels"])


# The labels of each metric, as docs/observability.md has them.
LABELS = {
    name: set(re.findall(r"`(\w+)`", labels))
    for names, labels in re.findall(
        r"^\| ((?:`\w+`(?:, )?)+) \| (.*?) \|", (ROOT / "docs" / "observability.md").read_text(), re.MULTILINE
    )
    for name in re.findall(r"`(\w+)`", names)
}


def _listed(name: str) -> str:
    """Return the name under which the page lists a series."""
    return next(
        known for known in (name, name.replace("_sum", "_count"), name.replace("_bucket", "")) if known in LABELS
    )


def test_every_expression_asks_for_metrics_and_labels_that_exist(exported: str) -> None:
    names = _names(exported)
    expressions = [rule["expr"] for rule in _alerts()]
    expressions += [target["expr"] for panel in _panels() for target in panel["targets"]]
    assert len(expressions) > 30
    for expression in expressions:
        used = set(re.findall(r"\bvbatch_\w+", expression))
        assert used <= names, (used - names, expression)
        assert used or expression.startswith("up{")
        labels = set(re.findall(r"[{,](\w+)=", expression))
        for group in re.findall(r"(?:by|on) \(([\w, ]+)\)", expression):
            labels |= {label.strip() for label in group.split(",")}
        known = set[str]().union(*(LABELS[_listed(name)] for name in used)) | {"job"}
        assert labels <= known, (labels - known, expression)


def test_the_page_lists_every_metric_and_no_other(exported: str) -> None:
    listed = set(re.findall(r"`(vbatch_\w+)`", (ROOT / "docs" / "observability.md").read_text()))
    # A summary is listed by what can be asked for.
    families = {re.sub(r"_(count|sum)$", "", name) for name in listed}
    exported_families = set(re.findall(r"^# TYPE (vbatch_\w+)", exported, re.MULTILINE))
    assert families == exported_families


def test_the_panels_do_not_overlap_and_each_shows_something() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in _panels():
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        assert panel["title"]
        assert panel["targets"]
        taken |= cells


def test_promtool_accepts_the_rules_and_the_metrics(exported: str, tmp_path: Path) -> None:
    promtool = _tool("promtool", "prometheus")
    folder = tmp_path / "prometheus"
    shutil.copytree(DEPLOY / "prometheus", folder)
    config = folder / "prometheus.yml"
    token = tmp_path / "token"
    token.write_text("t")
    config.write_text(config.read_text().replace("/etc/prometheus/vbatch_metrics_token", str(token)))
    for command, given in ((["check", "config", str(config)], ""), (["check", "metrics"], exported)):
        done = subprocess.run([promtool, *command], input=given, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"{len(_alerts())} rules found"
        in subprocess.run(
            [promtool, "check", "rules", str(folder / "alerts.yml")], capture_output=True, text=True
        ).stdout
    )


# Docker.


def test_the_dockerfile_copies_what_exists_and_all_that_the_wheel_needs() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    lines = re.findall(r"^COPY (.+)$", text, re.MULTILINE)
    copied = {source.rstrip("/") for line in lines for source in line.split()[:-1]}
    assert not [source for source in copied if not (ROOT / source).exists()]
    assert {"vbatch_site", "files", "batches", "workers", "templates", "recipes", "setup.py"} <= copied
    for engine in ("cpu", "cuda"):
        assert (ROOT / "requirements" / f"{engine}.lock").exists()
    # The place that it takes the index of torch's CPU builds from.
    name = re.search(r"s/\^readonly (\w+)=", text)
    assert name
    assert f"readonly {name[1]}=" in (ROOT / "scripts" / "setup").read_text()


def test_hadolint_has_nothing_to_say_about_the_dockerfile() -> None:
    done = subprocess.run([BIN / "hadolint", DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def _compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


def test_compose_names_what_exists() -> None:
    compose = _compose()
    services = compose["services"]
    assert {key for key in compose if not key.startswith("x-")} == {"name", "services", "volumes"}
    known = set(re.findall(r'"((?:VBATCH|DATABASE)_[A-Z_]+)"', (ROOT / "vbatch_site" / "settings.py").read_text()))
    for name, service in services.items():
        assert set(service.get("depends_on", {})) <= set(services), name
        assert {volume.split(":")[0] for volume in service["volumes"]} <= set(compose["volumes"]), name
        if "build" not in service:
            continue
        build = service["build"]
        assert (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
        assert set(service["environment"]) - known <= {"Q_CLUSTER_NAME", "HF_TOKEN"}, name
        assert service["command"][0] in ("vbatch", "uvicorn")
    assert services["gpu-cluster"]["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]


def test_compose_starts_what_the_units_start() -> None:
    services = _compose()["services"]
    ours = {name: _command(name) for name in UNITS}
    flags = {flag.split("=")[0] for flag in services["web"]["command"][2:]}
    assert flags == {flag for flag in ours["vbatch-web"][2:] if flag.startswith("--")}
    for service, name in (("default-cluster", "vbatch-default"), ("gpu-cluster", "vbatch-gpu")):
        assert services[service]["command"][1:] == ours[name][1:]
        assert f"Q_CLUSTER_NAME={services[service]['environment']['Q_CLUSTER_NAME']}" in _unit(name)
    assert services["migrate"]["command"][1:] == _command("vbatch-migrate")[1:]


# systemd.


def _unit(name: str) -> str:
    return (DEPLOY / "systemd" / f"{name}.service").read_text()


def _command(name: str) -> list[str]:
    found = re.search(r"^ExecStart=(.+)$", _unit(name), re.MULTILINE)
    assert found
    return shlex.split(found[1])


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    systemd = _tool("systemd-analyze", "systemd")
    for name in ("vbatch-migrate", *UNITS):
        # A program that is there: it is looked for.
        (tmp_path / f"{name}.service").write_text(_unit(name).replace("/opt/vbatch/.venv/bin/", "/usr/bin/env "))
    paths = [str(tmp_path / f"{name}.service") for name in ("vbatch-migrate", *UNITS)]
    done = subprocess.run([systemd, "verify", "--man=no", *paths], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "vbatch" in line]
    assert not ours, done.stderr


# All of it together: nginx, two web processes, both clusters, by the units' own commands.


class Deployed(Server):
    """A server whose parts are started as their units say, behind nginx."""

    def __init__(self, home: Path) -> None:
        lines = (DEPLOY / "systemd" / "vbatch.env").read_text().splitlines()
        given = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
        elsewhere = {name: str(home / name) for name in ("HF_HOME", "XDG_CACHE_HOME")}
        del given["DATABASE_URL"], given["VBATCH_HOME"]
        super().__init__(home, database=new_database(), VBATCH_SIM_TOKENS_PER_SECOND="20", **given | elsewhere)
        self.public, self.plain = free_port(), free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        for name in ("vbatch-migrate", *UNITS):
            command = _command(name)
            command[0] = str(BIN / Path(command[0]).name)
            if Path(command[0]).name == "vbatch":
                # The tests run from a checkout, where the program has no entry point.
                command = [sys.executable, "-m", "vbatch_site", *command[1:]]
            command = [str(self.port) if word == "4080" else word for word in command]
            own = dict(pair.split("=", 1) for pair in re.findall(r"^Environment=(.+)$", _unit(name), re.MULTILINE))
            with self.log.open("ab") as log:
                process = subprocess.Popen(command, cwd=ROOT, env={**self.env, **own}, stdout=log, stderr=log)
            if name == "vbatch-migrate":
                assert process.wait(60) == 0, self.log.read_text()
                continue
            self.processes[name] = process
        self.process = self.processes["vbatch-web"]
        wait_until(self.is_up, 90)

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(40)

    kill = stop  # it has more roots than one


def _certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "batch.example.com")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("batch.example.com")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "fullchain.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    (folder / "privkey.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    )


@pytest.fixture
def proxied(new_home: Path, tmp_path: Path) -> Iterator[Deployed]:
    nginx = _tool("nginx", "nginx")
    _certificate(tmp_path)
    server = Deployed(new_home)
    site = (DEPLOY / "nginx" / "vbatch.conf").read_text()
    changes = {
        "127.0.0.1:4080": f"127.0.0.1:{server.port}",
        "listen 80;": f"listen 127.0.0.1:{server.plain};",
        "listen 443 ssl http2;": f"listen 127.0.0.1:{server.public} ssl http2;",
        "listen [::]:80;": "",
        "listen [::]:443 ssl http2;": "",
        "/etc/ssl/vbatch": str(tmp_path),
    }
    for old, new in changes.items():
        assert old in site
        site = site.replace(old, new)
    (tmp_path / "vbatch.conf").write_text(site)
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/nginx.pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p;"
        f" fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;"
        f" include {tmp_path}/vbatch.conf; }}\n"
    )
    command = [nginx, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"), "-e", str(tmp_path / "error.log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    with ExitStack() as stack:
        stack.enter_context(server)
        front = stack.enter_context(subprocess.Popen(command))
        stack.callback(front.terminate)
        yield server


class ToLoopback(httpx.HTTPTransport):
    """Finds the name of the certificate on this machine."""

    def __init__(self, trust: ssl.SSLContext, port: int) -> None:
        super().__init__(verify=trust)
        self._port = port

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions["sni_hostname"] = "batch.example.com"
        request.url = request.url.copy_with(host="127.0.0.1", port=self._port)
        return super().handle_request(request)


def test_the_units_commands_behind_the_nginx_site_serve_uploads_and_streams(proxied: Deployed, tmp_path: Path) -> None:
    trust = ssl.create_default_context(cafile=str(tmp_path / "fullchain.pem"))

    web = httpx.Client(transport=ToLoopback(trust, proxied.public), base_url="https://batch.example.com", timeout=60)
    wait_until(lambda: (tmp_path / "nginx.pid").exists())
    web.headers["authorization"] = f"Bearer {proxied.key}"
    # Larger than what nginx keeps in memory, so that a proxy that spools it would leave a file.
    text = "".join(chat_line(f"line-{i}", "hello " * 400) for i in range(4000))
    stored = web.post("/v1/files", files={"file": ("input.jsonl", text.encode())}, data={"purpose": "batch"})
    assert stored.status_code == 200, stored.text
    assert stored.json()["bytes"] == len(text)
    assert not [path for path in (tmp_path / "b").rglob("*") if path.is_file()], "nginx wrote the upload to its disk"
    wanted = {
        "input_file_id": _upload(web, [chat_line("a"), chat_line("b")]),
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = web.post("/v1/batches", json=wanted).json()
    with web.stream("GET", f"/v1/batches/{batch['id']}/results", headers={"accept": "text/event-stream"}) as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        body = events.read().decode()
    assert body.count('"custom_id"') == 2
    # Thirty tokens take a second and a half: a reader that was held up for less does not find them all there at once.
    chat = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}
    chat |= {"max_tokens": 30, "ignore_eos": True}
    with web.stream("POST", "/v1/chat/completions", json=chat) as live:
        assert len([chunk for chunk in live.iter_text() if chunk]) > 1, "the proxy held the stream back"
    assert web.get("/metrics").status_code == 404
    assert web.get("/health").json()["status"] == "ok"
    web.close()
    assert httpx.get(f"http://127.0.0.1:{proxied.plain}/x", headers={"host": "batch.example.com"}).status_code == 301


def _upload(web: httpx.Client, lines: list[str]) -> str:
    sent = {"file": ("input.jsonl", "".join(lines).encode())}
    return str(web.post("/v1/files", files=sent, data={"purpose": "batch"}).json()["id"])
