"""Real servers for tests: `manage.py serve` on a database and a home of its own."""

import hashlib
import http.client
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

import psutil
import psycopg
from psycopg import sql

from vbatch_site import ports

ROOT = Path(__file__).resolve().parent.parent.parent
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TERMINAL = ("completed", "failed", "expired", "cancelled")

_template: str | None = None


def _admin(statement: sql.Composed) -> None:
    with psycopg.connect(os.environ["DATABASE_URL"], autocommit=True) as connection:
        connection.execute(statement)


def _manage(*arguments: str, env: dict[str, str]) -> str:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "manage.py", *arguments], cwd=ROOT, env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def _url(database: str) -> str:
    parts = psycopg.conninfo.conninfo_to_dict(os.environ["DATABASE_URL"])
    return psycopg.conninfo.make_conninfo("", **{**parts, "dbname": database})


def new_database() -> str:
    """Return the URL of a migrated, empty database, copied from one that was migrated once."""
    global _template
    if _template is None:
        _template = f"template_{uuid4().hex[:8]}"
        _admin(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_template)))
        _manage("migrate", "-v0", env={**os.environ, "DATABASE_URL": _url(_template)})
    name = f"server_{uuid4().hex[:8]}"
    _admin(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(_template)))
    return _url(name)


def free_port() -> int:
    """Return a port that nobody listens on."""
    return ports.free_port()


def wait_until(condition: Callable[[], Any], seconds: float = 60, step: float = 0.05) -> Any:
    """Return the condition's first true value; fail after the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        # The last look comes after the end, however long this process was kept from running before it.
        late = time.monotonic() >= deadline
        if value := condition():
            return value
        assert not late, f"not so after {seconds} s: {condition}"
        time.sleep(step)


def chat_line(custom_id: str, text: str = "hello", model: str | None = MODEL, **body: Any) -> str:
    """Return one input line."""
    content = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **body}
    if model is None:
        del content["model"]
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": content}
    return json.dumps(line) + "\n"


def words_of(process: psutil.Process) -> list[str]:
    """Return the command line, empty for one that has ended."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


class Server:
    """One process tree and the ways to look at it."""

    folder = ROOT  # that it is started in

    def __init__(self, home: Path, database: str = "", **settings: str) -> None:
        self.home = home
        self.port = free_port()
        self.database = database or new_database()
        self.env = {
            **os.environ,
            "VBATCH_HOME": str(home),
            "VBATCH_PORT": str(self.port),
            "VBATCH_ENGINE": "sim",
            "VBATCH_SIM_REQUEST_LOG": str(home / "requests.log"),
            "DATABASE_URL": self.database,
            **settings,
        }
        self.log = home / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._key: str | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        # A test that is about a stop stops it itself; in good order it takes two seconds, and there are many servers.
        # What holds more than a database of one test is stopped all the same: Postgres, and vLLM's shared memory.
        if self.env["VBATCH_ENGINE"] == "sim" and self.env["DATABASE_URL"]:
            self.kill()
        else:
            self.stop()

    @property
    def base_url(self) -> str:
        """The API's base, as SDKs take it."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def key(self) -> str:
        """An API key of the default project."""
        if self._key is None:
            # The first start prints one; a command for each server would cost its seconds.
            shown = re.search(r"^Key +(\S+)", self.log.read_text() if self.log.exists() else "", re.MULTILINE)
            self._key = shown[1] if shown else self.manage("create_api_key", "test")
        return self._key

    @key.setter
    def key(self, key: str) -> None:
        self._key = key

    def new_key(self, project: str = "default", *, scopes: tuple[str, ...] = ("batches", "live", "services")) -> str:
        """Return a new key of a project, made where there is none; the command for it would take seconds."""
        key = f"sk-vb-{secrets.token_urlsafe(32)}"
        new = "INSERT INTO vbatch_site_project (name, created_at, weight) VALUES (%s, now(), 1) ON CONFLICT DO NOTHING"
        self.execute(new, project)
        self.execute(
            "INSERT INTO vbatch_site_apikey (project_id, name, scopes, prefix, key_hash, created_at)"
            " SELECT id, 'test', %s, %s, %s, now() FROM vbatch_site_project WHERE name = %s",
            list(scopes),
            key[:12],
            hashlib.sha256(key.encode()).hexdigest(),
            project,
        )
        return key

    def add_model(self, name: str, source: str, arguments: str = "") -> None:
        """Put a chat model into the catalogue."""
        self.execute(
            "INSERT INTO workers_servedmodel (name, source, engine_args, endpoints, enabled, created_at, load_error)"
            " VALUES (%s, %s, %s, '[\"/v1/chat/completions\"]', true, now(), '')",
            name,
            source,
            arguments,
        )

    def manage(self, *arguments: str) -> str:
        """Run a management command and return what it printed."""
        return _manage(*arguments, env=self.env)

    def command(self) -> list[str]:
        """Return what is started."""
        return [sys.executable, "manage.py", "serve"]

    def start(self) -> None:
        """Start the tree and wait until it answers."""
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603
                self.command(), cwd=self.folder, env=self.env, stdout=log, stderr=log
            )
        wait_until(self.is_up, 120)

    def is_up(self) -> bool:
        """Return whether /health is 200; fail when the process has ended."""
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.request("GET", "/health", key=None)[0] == 200
        except OSError:
            return False

    def stop(self) -> None:
        """Stop the tree as Ctrl-C does."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(40)

    def kill(self) -> None:
        """End the tree at once, whatever of it has ended already."""
        if self.process is None or self.process.poll() is not None:
            return
        with suppress(psutil.NoSuchProcess):
            processes = self.tree()
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(processes[1:], 10)
        self.process.wait(30)

    def tree(self) -> list[psutil.Process]:
        """Return all processes of the tree, the root first."""
        assert self.process is not None
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def kill_tree(self) -> None:
        """Kill -9 everything at once."""
        processes = self.tree()
        for process in processes:
            # One that was just starting something may be done with it.
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, 10)

    def service_processes(self) -> list[psutil.Process]:
        """Return the processes of all services that were started on this home, wherever they hang."""
        found = []
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                if "launchers/job.py" in command and str(self.home) in command:
                    found += [process, *process.children(recursive=True)]
            except psutil.Error:
                continue
        return found

    def kill_services(self) -> None:
        """Kill -9 what outlives the server."""
        for process in self.service_processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def gpu_worker(self) -> psutil.Process:
        """Return the process that owns the engine."""
        pid = wait_until(
            lambda: self.query("SELECT pid FROM workers_worker WHERE stopped_at IS NULL ORDER BY seen_at DESC")
        )
        return psutil.Process(pid[0][0])

    def running(self, word: str) -> list[psutil.Process]:
        """Return the processes of the tree that have a word in their command line, without their guards."""
        found = [(process, words_of(process)) for process in self.tree()]
        return [process for process, words in found if word in words and "guard.py" not in " ".join(words)]

    def engine(self) -> psutil.Process:
        """Return the simulated engine's process."""
        return self.running("workers.sim")[0]

    def web(self) -> psutil.Process:
        """Return the process that serves HTTP."""
        return self.running("uvicorn")[0]

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the server's own database."""
        with psycopg.connect(self.database) as connection:
            return connection.execute(statement, values).fetchall()

    def execute(self, statement: str, *values: Any) -> None:
        """Change the server's own database."""
        with psycopg.connect(self.database) as connection:
            connection.execute(statement, values)

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        key: str | None = "",
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], Any]:
        """Send one request; return status, headers with lower-case names, and the body, JSON parsed."""
        sent = dict(headers or {})
        if key is not None:
            sent.setdefault("Authorization", f"Bearer {key or self.key}")
        if isinstance(body, dict):
            body = json.dumps(body)
            sent.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        got = {name.lower(): value for name, value in response.getheaders()}
        parsed: Any = json.loads(data) if got.get("content-type", "").startswith("application/json") else data
        return response.status, got, parsed

    def upload(self, content: bytes | str, purpose: str = "batch", name: str = "input.jsonl") -> str:
        """Upload a file and return its id."""
        data = content.encode() if isinstance(content, str) else content
        edge = uuid4().hex
        head = (
            f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
            f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
        )
        body = head.encode() + data + f"\r\n--{edge}--\r\n".encode()
        kind = {"Content-Type": f"multipart/form-data; boundary={edge}"}
        status, _, answer = self.request("POST", "/v1/files", body, headers=kind)
        assert status == 200, answer
        return str(answer["id"])

    def create(self, content: Iterable[str] | str, **fields: Any) -> str:
        """Upload lines, create their batch and return its id."""
        text = content if isinstance(content, str) else "".join(content)
        wanted = {
            "input_file_id": self.upload(text),
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            **fields,
        }
        status, _, answer = self.request("POST", "/v1/batches", wanted)
        assert status == 200, answer
        return str(answer["id"])

    def batch(self, batch_id: str) -> dict[str, Any]:
        """Return the batch object."""
        return dict(self.request("GET", f"/v1/batches/{batch_id}")[2])

    def wait(self, batch_id: str, seconds: float = 120, statuses: Iterable[str] = TERMINAL) -> dict[str, Any]:
        """Return the batch once it is in one of the states."""
        deadline = time.monotonic() + seconds
        while (batch := self.batch(batch_id))["status"] not in statuses:
            assert time.monotonic() < deadline, f"{batch}\n{self.log.read_text()[-4000:]}"
            time.sleep(0.05)
        return batch

    def content(self, file_id: str | None) -> list[dict[str, Any]]:
        """Return the lines of a result file, none without a file."""
        if file_id is None:
            return []
        data = self.request("GET", f"/v1/files/{file_id}/content")[2]
        return [json.loads(line) for line in data.splitlines()]

    def lines(self, batch: dict[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the output lines and the error lines."""
        return self.content(batch["output_file_id"]), self.content(batch["error_file_id"])

    def requests_seen(self) -> list[str]:
        """Return the user text of each request that the simulated engine took."""
        path = self.home / "requests.log"
        # Only newlines end a line of the log: splitlines() would also break at U+2028 and the like inside a prompt.
        # What has none yet is just being written.
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.exists() else []


class Web(Server):
    """One web process and nothing else; several may share a database and a home."""

    def command(self) -> list[str]:
        """Return what is started."""
        program = "vbatch_site.asgi:application"
        return [sys.executable, "-m", "uvicorn", program, "--port", str(self.port), "--lifespan", "off"]
