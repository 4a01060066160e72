"""The wheel has everything: it is installed alone, and runs in an empty folder."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

from vbatch_site import __version__
from vbatch_site.tests.servers import ROOT, Server, chat_line

pytestmark = pytest.mark.slow

SOURCES = ["vbatch_site", "files", "batches", "workers", "templates", "recipes"]
PAPERS = ["pyproject.toml", "setup.py", "README.md", "LICENSE"]


class Installed(Server):
    """A server that was installed from a wheel and knows no checkout."""

    def command(self) -> list[str]:
        """Return what is started."""
        return [str(self.folder / "venv" / "bin" / "vbatch"), "serve"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because a build leaves folders beside what it builds."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PAPERS:
        shutil.copy(ROOT / name, copy)
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, "-w", str(out), str(copy)], check=True)
    return next(out.glob("*.whl"))


def test_the_wheel_has_what_the_rooms_have_and_no_tests(wheel: Path) -> None:
    assert wheel.name == f"vbatch-{__version__}-py3-none-any.whl"
    names = set(ZipFile(wheel).namelist())
    places = {"templates": "vbatch_site/templates", "recipes": "workers/recipes"}
    wanted = {
        str(Path(places.get(room, room), path.relative_to(ROOT / room)))
        for room in SOURCES
        for path in (ROOT / room).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and "tests" not in path.parts
    }
    info = f"vbatch-{__version__}.dist-info/"
    assert {name for name in names if not name.startswith(info)} == wanted
    assert f"{info}licenses/LICENSE" in names


def test_an_installed_wheel_serves_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    site = next((venv / "lib").glob("python*")) / "site-packages"
    # Everything else that is installed here, without the checkout.
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True)
    server = Installed(tmp_path / "var", VBATCH_HOME="./var")
    server.folder = tmp_path
    checked = subprocess.run([*server.command()[:-1], "check"], cwd=tmp_path, env=server.env, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    with server:
        printed = server.log.read_text()
        server.key = next(line.split()[1] for line in printed.splitlines() if line.startswith("Key"))
        batch = server.wait(server.create(chat_line("a")))
        assert batch["request_counts"] == {"total": 1, "completed": 1, "failed": 0}
        for path in ("/", "/admin/login/", "/docs/", "/static/console/console.css"):
            status, _, content = server.request("GET", path, key=None)
            assert (status, bool(content)) == (200, True), path
        assert server.request("GET", "/api/v1/recipes")[0] == 200
    # That server was killed; a file is run without one.
    (tmp_path / "in.jsonl").write_text(chat_line("a") + chat_line("b", "[[sim:400]]"))
    command = [*server.command()[:-1], "run_batch", "in.jsonl", "-o", "out.jsonl"]
    ran = subprocess.run(command, cwd=tmp_path, env=server.env, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, "1 of 2 answered, 1 failed" in ran.stderr) == (1, True), ran.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["custom_id"], line["response"]["status_code"]) for line in lines] == [("a", 200), ("b", 400)]
    assert {path.name for path in tmp_path.iterdir()} == {"venv", "var", "in.jsonl", "out.jsonl"}
    assert not (site / "staticfiles").exists()
