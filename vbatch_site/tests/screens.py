"""Take a picture of every page of the console, in both themes and at two widths, with data in every state."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
from playwright.sync_api import Browser, Page, sync_playwright

from batches.locks import lock_key
from vbatch_site.tests import plugin  # noqa: F401 (starts the database that servers are made in)
from vbatch_site.tests.browsers import chromium, sign_in
from vbatch_site.tests.servers import Server, chat_line
from vbatch_site.tests.worlds import furnish, lengthen

WIDTHS = {"wide": (1440, 900), "narrow": (390, 844)}


def pages(world: dict[str, str]) -> dict[str, str]:
    """Return the address of each page by name."""
    return {
        "landing": "/",
        "dashboard": "/console/",
        "batches": "/console/batches",
        "batches-none": "/console/batches?q=batch_none",
        "batch-running": f"/console/batches/{world['in_progress']}",
        "batch-completed": f"/console/batches/{world['completed']}",
        "batch-failed": f"/console/batches/{world['failed']}",
        "results": f"/console/batches/{world['completed']}/results",
        "line": f"/console/batches/{world['completed']}/results/1",
        "line-failed": f"/console/batches/{world['completed']}/results/{world['bad_line']}",
        "raw": f"/console/batches/{world['completed']}/raw",
        "new": "/console/batches/new",
        "new-describe": f"/console/batches/new/{world['bad_file']}",
        "files": "/console/files",
        "file": f"/console/files/{world['file']}",
        "models": "/console/models",
        "workers": "/console/workers",
        "worker": f"/console/workers/{world['worker']}",
        "services": "/console/services",
        "service-start": "/console/services/start/inference/vllm",
        "service": f"/console/services/{world['service']}",
        "keys": "/console/keys",
        "webhooks": "/console/webhooks",
        "delivery": f"/console/webhooks/deliveries/{world['delivery']}",
        "system": "/console/system",
        "admin-batches": "/admin/batches/batch/",
        "admin-tasks": "/admin/django_q/ormq/",
        "admin-success": "/admin/django_q/success/",
    }


def shoot(browser: Browser, server: Server, world: dict[str, str], out: Path, only: set[str]) -> None:
    """Write one file a page, theme and width."""
    for theme in ("light", "dark"):
        for width, (x, y) in WIDTHS.items():
            context = browser.new_context(viewport={"width": x, "height": y}, color_scheme=theme)
            page = context.new_page()
            sign_in(page, server)
            for name, address in pages(world).items():
                if only and name not in only:
                    continue
                _shoot(page, f"http://127.0.0.1:{server.port}{address}", out / f"{name}-{theme}-{width}.png")
            context.close()


def _shoot(page: Page, url: str, to: Path) -> None:
    page.goto(url)
    page.wait_for_load_state("load")
    # Fonts and the parts that load themselves.
    page.wait_for_function(
        "document.fonts.ready && !document.querySelector('[hx-trigger^=load] > .vb-subtle:only-child')"
    )
    time.sleep(0.35)
    # As tall as the page, so that what sticks to the window stands where it would.
    size = page.viewport_size or {"width": 0, "height": 0}
    tall = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": size["width"], "height": max(tall, size["height"])})
    page.screenshot(path=to)
    page.set_viewport_size(size)


def shoot_for_readers(browser: Browser, server: Server, world: dict[str, str], to: Path) -> None:
    """Write the picture that README shows: a batch in progress."""
    context = browser.new_context(viewport={"width": 1400, "height": 960}, color_scheme="light")
    page = context.new_page()
    sign_in(page, server)
    page.goto(f"http://127.0.0.1:{server.port}/console/batches/{world['in_progress']}")
    page.wait_for_load_state("networkidle")
    page.screenshot(path=to)
    context.close()


_GPUS = """#!/bin/sh
echo "0, NVIDIA H100 80GB HBM3, 71340, 81559, 93, 61"
echo "1, NVIDIA H100 80GB HBM3, 68211, 81559, 88, 58"
echo "2, NVIDIA H100 80GB HBM3, 4, 81559, 0, 31"
"""


def _pretend_gpus(folder: Path) -> str:
    """Write a program that answers as nvidia-smi would, and return a PATH that has it: this machine has no GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(_GPUS)
    program.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


@contextmanager
def _unswept(server: Server) -> Iterator[None]:
    """Keep batches as they were drawn: the sweep rings for those that have been validating or ending for a while."""
    with psycopg.connect(server.database, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [lock_key("sweep")])
        yield


def main() -> None:
    """Start a server, fill it, and take the pictures."""
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots")
    only = set(sys.argv[2:])
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        home = Path(folder)
        settings: dict[str, Any] = {"VBATCH_SIM_LINES_PER_SECOND": "20", "VBATCH_GPU_WORKERS": "1"}
        settings["PATH"] = _pretend_gpus(home / "bin")
        with Server(home / "server", **settings) as server, _unswept(server):
            world = furnish(server, chat_line)
            server.wait(world["in_progress"], 120)
            world["in_progress"] = lengthen(server, chat_line)
            with sync_playwright() as playwright, chromium(playwright) as browser:
                if not only or "console" in only:
                    shoot_for_readers(browser, server, world, out / "console.png")
                shoot(browser, server, world, out, only)
    sys.stdout.write(f"{len(list(out.glob('*.png')))} pictures in {out}\n")


if __name__ == "__main__":
    main()
