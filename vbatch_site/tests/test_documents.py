"""The code on the pages, and the examples, run against a server with the simulated engine."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from batches.validation import RUNNABLE
from batches.webhooks import signing
from vbatch_site.tests.contract.test_sdks import SDKS
from vbatch_site.tests.node import cannot
from vbatch_site.tests.pages import ROOT, TRIED, Block, blocks, name_of, pages, untyped
from vbatch_site.tests.servers import Server, chat_line, free_port, wait_until

pytestmark = pytest.mark.slow

SECONDS = 180  # for one page or program, on a busy machine

# A refused request ends a block, as it would a careful person's script; what a block sets is there in the next one.
PREAMBLE = """
set -eu -o pipefail
curl() { command curl --silent --show-error --fail-with-body --max-time 150 "$@"; }
[ ! -f .state ] || . ./.state
set -a
"""
STEERING = "docs/steering.md"
EPILOGUE = "\nexport -p >.state\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, bucket: dict[str, str]) -> Iterator[Server]:
    """A server for all pages and examples, which keeps files in a bucket and may send webhooks to this machine."""
    if shutil.which("curl") is None:
        cannot("curl is not installed")
    settings = {"VBATCH_WEBHOOK_ALLOW_PRIVATE": "on", "VBATCH_WEBHOOK_RETRY_SECONDS": "0.2"}
    with Server(tmp_path_factory.mktemp("documents"), **settings, **bucket) as server:
        yield server
    server.kill_services()
    assert not (server.home / "files").exists(), "a file went past the bucket"


@dataclass
class World:
    """What is there when a reader comes to a page: a server, a key, a file, batches."""

    server: Server
    node: Path
    file: str = ""
    ended: str = ""  # a batch with lines that failed
    running: str = ""  # one that will not end by itself
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the file and the batches."""
        failed = [chat_line(f"request-{number}", "[[sim:400]]") for number in (7, 9)]
        self.file = self.server.upload(chat_line("a") + chat_line("b"))
        self.ended = self.server.create([chat_line("request-1"), *failed])
        self.running = self.server.create([chat_line("stuck", "[[sim:hang]]")])
        self.server.wait(self.ended)
        self.server.wait(self.running, statuses=["in_progress"])
        self.names = {
            "BASE": self.server.base_url,
            "KEY": self.server.key,
            "OPENAI_BASE_URL": self.server.base_url,
            "OPENAI_API_KEY": self.server.key,
            "BATCH": self.ended,
            "FILE": self.file,
        }

    def filled_in(self, text: str) -> str:
        """Return a block with this world's names in the places that are left to the reader."""
        for placeholder, name in (
            ("http://localhost:4080", f"http://127.0.0.1:{self.server.port}"),
            ("sk-vb-...", self.server.key),
            ("sk-...", self.server.key),
            ("file-...", self.file),
            ("batch_...", self.ended),
            (", 2000)", ", 100)"),
            ("var/metrics_token", str(self.server.home / "metrics_token")),
        ):
            text = text.replace(placeholder, name)
        return text

    def batch_of(self, block: Block) -> str:
        """Return the batch that a block is about: one that runs, where only such a one can be steered."""
        running = block.page == STEERING and block.heading in ("Priority", "Pause and resume")
        return self.running if running else self.ended


@pytest.fixture(scope="module")
def world(server: Server, request: pytest.FixtureRequest) -> World:
    """The reader's world."""
    node = Path(request.config.cache.mkdir("sdk-node"))
    SDKS["node"](node)
    return World(server, node)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like a clone, with a file of requests in it."""
    for entry in ROOT.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / "requests.jsonl").write_text(chat_line("1", "Name three colours.") + chat_line("2"))
    return tmp_path


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll more often than a person would."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.1)))


@pytest.fixture
def deadline() -> Iterator[None]:
    """End a page that never ends."""

    def late(*_: object) -> None:
        raise TimeoutError(f"still running after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def _shell(block: Block, folder: Path, world: World) -> str:
    # Other pages make the batch that they are about themselves.
    first = f"BATCH={world.batch_of(block)}\n" if block.page == STEERING else ""
    text = PREAMBLE + first + world.filled_in(block.text) + EPILOGUE
    env = {**world.server.env, **world.names}
    return _run(["bash", "-c", text], folder, env, f"{block.page}:{block.line}")


def _node(block: Block, folder: Path, world: World) -> str:
    # Node looks for packages beside the script.
    script = world.node / f"page-{block.page.replace('/', '-')}-{block.line}.mjs"
    script.write_text(untyped(world.filled_in(block.text)))
    try:
        return _run(["node", str(script)], folder, {**os.environ, **world.names}, f"{block.page}:{block.line}")
    finally:
        script.unlink()


def _run(command: list[str], folder: Path, env: dict[str, str], what: str) -> str:
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, f"{what}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def _parsed(block: Block) -> None:
    if block.language == "yaml":
        assert yaml.safe_load(block.text), block
        return
    try:
        json.loads(block.text)
    except json.JSONDecodeError:
        assert [json.loads(line) for line in block.text.splitlines()], block


PAGES = [page for page in pages() if name_of(page) in TRIED]


@pytest.mark.usefixtures("deadline", "shortened")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_code_on_a_page_runs(
    page: Path, world: World, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    for name, value in world.names.items():
        monkeypatch.setenv(name, value)
    namespace: dict[str, Any] = {"__name__": "page"}
    said = []
    for block in blocks(page):
        if not block.is_run:
            continue
        if block.language in ("json", "yaml"):
            _parsed(block)
        elif block.language in ("sh", "bash"):
            said.append(_shell(block, folder, world))
        elif block.language == "typescript":
            said.append(_node(block, folder, world))
        else:
            if "batch_id" in namespace:
                namespace["batch_id"] = world.batch_of(block)
            code = compile(world.filled_in(block.text), f"{block.page}:{block.line}", "exec")
            exec(code, namespace)  # noqa: S102 (the page's own code)
            said.append(capsys.readouterr().out)
    if page == ROOT / "README.md":
        # Three languages, and each reads the same two answers.
        assert len([text for text in said if re.search(r'"custom_id": ?"1"', text) and "echo: " in text]) == 3


def test_the_page_for_language_models_is_about_this_server(server: Server, folder: Path) -> None:
    status, headers, page = server.request("GET", "/llms.txt", key=None)
    text = page.decode()
    assert (status, headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert f"Base URL: {server.base_url}\n" in text
    assert all(endpoint in text for endpoint in RUNNABLE)
    assert "&" not in text  # nothing is escaped as in a page
    root = f"http://127.0.0.1:{server.port}"
    for address in re.findall(rf"{root}(/(?:api/schema|docs)/)", text):
        assert server.request("GET", address, key=None, headers={"Accept": "*/*"})[0] == 200
    paths = set(server.request("GET", "/api/schema/", key=None)[2]["paths"])
    named = set(re.findall(r"`(?:GET|POST) (/v1/[\w/{}]+)", text))
    assert {re.sub(r"{id}", "{batch_id}", path) for path in named} <= paths
    assert b'href="/llms.txt"' in server.request("GET", "/", key=None)[2]
    # The Host header is the reader's own.
    other = server.request("GET", "/llms.txt", key=None, headers={"Host": "batch.example.org"})[2].decode()
    assert "Base URL: http://batch.example.org/v1\n" in other
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = code.replace("sk-vb-...", server.key).replace("sleep(2)", "sleep(0.2)")
    assert "echo: " in _run([sys.executable, "-c", code], folder, {**os.environ}, "llms.txt")


EXAMPLES = ROOT / "examples"


def test_the_scripts_answer_a_file_of_requests(world: World, folder: Path) -> None:
    script = world.node / "example-batch.mjs"
    # Nothing in it is of TypeScript's own but what its types would say.
    shutil.copy(EXAMPLES / "batch.ts", script)
    env = {**os.environ, **world.names}
    commands = {
        "python": [sys.executable, str(EXAMPLES / "batch.py")],
        "node": ["node", str(script)],
        "curl": [str(EXAMPLES / "batch.sh")],
    }
    (folder / "bad.jsonl").write_text(chat_line("1") + chat_line("2", "[[sim:400]]"))
    started = {
        (name, source): subprocess.Popen(
            [*command, source, f"{name}-{source}"],
            cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name, command in commands.items()
        for source in ("requests.jsonl", "bad.jsonl")
    }  # fmt: skip
    for (name, source), process in started.items():
        said, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == (0 if source == "requests.jsonl" else 1), said
        lines = [json.loads(line) for line in (folder / f"{name}-{source}").read_text().splitlines()]
        assert [line["custom_id"] for line in lines] == (["1", "2"] if source == "requests.jsonl" else ["1"])
        assert all(line["response"]["status_code"] == 200 for line in lines)
        assert source == "requests.jsonl" or '"custom_id": "2"' in said.replace('":"', '": "')
    script.unlink()


def test_a_csv_file_gets_its_answers_and_only_what_changed_runs_again(world: World, folder: Path) -> None:
    env = {**os.environ, **world.names}
    command = [sys.executable, str(EXAMPLES / "csv_batch.py"), "in.csv", "out.csv", "--prompt", "csv {text}"]
    (folder / "in.csv").write_text('id,text\n1,"one, two"\n2,[[sim:400]]\n')
    first = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert first.returncode == 1, first.stderr
    head, *rows = (folder / "out.csv").read_text().splitlines()
    assert head == "id,text,answer,answer_error"
    assert rows[0] == '1,"one, two","echo: csv one, two",'
    assert rows[1].startswith("2,[[sim:400]],,")

    (folder / "in.csv").write_text('id,text\n1,"one, two"\n2,three\n')
    second = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert second.returncode == 0, second.stderr
    assert (folder / "out.csv").read_text().splitlines()[2] == "2,three,echo: csv three,"
    (noted,) = json.loads((folder / "out.csv.state").read_text())
    third = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS)
    assert third.returncode == 0
    assert json.loads((folder / "out.csv.state").read_text()) == [noted]  # no new batch
    assert sorted(text for text in world.server.requests_seen() if text.startswith("csv ")) == [
        "csv [[sim:400]]", "csv one, two", "csv three",
    ]  # fmt: skip


SECRET = "a long random text"


class Application:
    """The FastAPI example as a process of its own."""

    def __init__(self, server: Server, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "app.log"
        self._command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port)]
        self._env = {
            **os.environ,
            "OPENAI_BASE_URL": server.base_url,
            "OPENAI_API_KEY": server.key,
            "WEBHOOK_URL": f"{self.url}/webhooks/vbatch",
            "WEBHOOK_SECRET": SECRET,
            "DATABASE": str(folder / "jobs.sqlite3"),
            "POLL_SECONDS": "3600",  # once, at the start
        }

    def __enter__(self) -> "Application":
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=EXAMPLES / "integrations" / "fastapi", env=self._env, stdout=log, stderr=log
            )
        wait_until(self._is_up, SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)

    def _is_up(self) -> bool:
        assert self._process.poll() is None, self.log
        try:
            return httpx.get(f"{self.url}/health", timeout=SECONDS).status_code == 200
        except httpx.TransportError:
            return False

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text()

    def submit(self, content: str) -> httpx.Response:
        """Upload a file."""
        return httpx.post(f"{self.url}/jobs", files={"file": ("in.jsonl", content)}, timeout=SECONDS)

    def job(self, job: str) -> dict[str, Any]:
        """Show a job."""
        return dict(httpx.get(f"{self.url}/jobs/{job}", timeout=SECONDS).json())

    def results(self, job: str) -> list[dict[str, Any]]:
        """Return a job's results once they are all there."""

        def answer() -> dict[str, Any]:
            return dict(httpx.get(f"{self.url}/jobs/{job}/results", timeout=SECONDS).json())

        wait_until(lambda: answer()["complete"], SECONDS)
        return list(answer()["results"])

    def told(self, body: bytes, **headers: str) -> int:
        """Send a webhook and return the answer's status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.post(f"{self.url}/webhooks/vbatch", content=body, headers=named, timeout=SECONDS).status_code


def test_a_look_at_a_job_that_is_written_down_late_does_not_bring_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / "integrations" / "fastapi")
    store = importlib.import_module("store").Store(str(tmp_path / "jobs.sqlite3"))
    store.add("key", "in.jsonl")
    store.submitted("key", "batch_1")
    for status, done in (("in_progress", 1), ("completed", 2), ("in_progress", 1)):
        store.seen("batch_1", status, {"total": 2, "completed": done, "failed": 0}, None)
    assert (store.job("batch_1")["status"], store.job("batch_1")["completed"]) == ("completed", 2)


def test_the_fastapi_application_keeps_what_webhooks_and_polls_tell_it(server: Server, folder: Path) -> None:
    port = free_port()
    with Application(server, folder, port) as app:
        answer = app.submit(chat_line("good", "hello") + chat_line("bad", "[[sim:400]]"))
        assert answer.status_code == 202, app.log
        job = answer.json()["id"]
        bad, good = app.results(job)
        assert (good["custom_id"], good["status_code"], good["error"]) == ("good", 200, None)
        assert good["answer"]["choices"][0]["message"]["content"] == "echo: hello"
        assert (bad["custom_id"], bad["status_code"], bad["answer"]) == ("bad", 400, None)
        seen = app.job(job)
        assert (seen["status"], seen["completed"], seen["failed"]) == ("completed", 1, 1)
        # The poller sleeps; who submits looks once, and the webhook may come before or after that.
        wait_until(lambda: re.search(rf"webhook wh_\w+: batch.completed {job}", app.log), SECONDS)

        job = app.submit(chat_line("1") + "no json\n").json()["id"]
        assert app.results(job) == []
        assert (app.job(job)["status"], app.job(job)["error"][:7]) == ("failed", "line 2:")

        refused = app.submit("")
        assert (refused.status_code, refused.json()["detail"]) == (
            400,
            "Invalid file format for Batch API. Must be .jsonl",
        )
        assert app.submit("no json").status_code == 422
        assert httpx.get(f"{app.url}/jobs/none/results", timeout=SECONDS).status_code == 404
        assert [each["id"] for each in httpx.get(f"{app.url}/jobs", timeout=SECONDS).json()][-1] == answer.json()["id"]

        body = json.dumps({"type": "batch.completed", "batch_id": job}).encode()
        signed = {
            name.lower(): value for name, value in signing.headers("wh_1", int(time.time()), body, [SECRET]).items()
        }
        old = signed["x-webhook-signature"]
        assert app.told(body, **signed) == 204
        assert app.told(body, x_webhook_signature=f"sha256={old}") == 204
        assert app.told(body + b" ", **signed) == 401
        assert app.told(body + b" ", x_webhook_signature=old) == 401
        assert app.told(body) == 401
        late = signing.headers("wh_2", int(time.time()) - 3600, body, [SECRET])
        assert app.told(body, **{name.lower(): value for name, value in late.items()}) == 401

        # Its webhook meets nobody: the application is gone by then.
        job = app.submit(chat_line("slow", "[[sim:slow:1]]")).json()["id"]
    server.wait(job)
    with Application(server, folder, port) as app:
        assert app.results(job)[0]["status_code"] == 200
    assert "hello" not in app.log
