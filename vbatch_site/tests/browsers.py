"""Debian's Chromium, driven by Playwright, signed in to a test's server."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, Page, Playwright

from vbatch_site.tests.servers import Server

ADMIN, PASSWORD = "boss", "the-boss-signs-in"


def path_of_chromium() -> str | None:
    """Return the browser's program, None where there is none."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium(playwright: Playwright) -> Iterator[Browser]:
    """Run a browser that reaches this machine and nothing else."""
    program = path_of_chromium()
    assert program is not None, "chromium is not installed"
    arguments = ["--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")
    browser = playwright.chromium.launch(executable_path=program, args=arguments)
    try:
        yield browser
    finally:
        browser.close()


def make_user(server: Server, name: str = ADMIN, role: str = "") -> None:
    """Make a superuser, or a member of a role."""
    script = (
        "from django.contrib.auth import get_user_model as g; from django.contrib.auth.models import Group; "
        f"u, _ = g().objects.get_or_create(username={name!r}, is_staff=True, is_superuser={not role}); "
        f"u.set_password({PASSWORD!r}); u.save(); "
        f"u.groups.set(Group.objects.filter(name={role!r}))"
    )
    server.manage("shell", "-v0", "-c", script)


def sign_in(page: Page, server: Server, name: str = ADMIN) -> None:
    """Sign in through the form and arrive at the dashboard."""
    page.goto(f"http://127.0.0.1:{server.port}/admin/login/?next=/console/")
    page.fill("input[name=username]", name)
    page.fill("input[name=password]", PASSWORD)
    page.click("button[type=submit]")
    page.wait_for_url("**/console/")


class Watch:
    """Collects what must not happen on a page: script errors, failed requests, requests to other hosts."""

    def __init__(self, page: Page, server: Server) -> None:
        self.faults: list[str] = []
        self._own = f"http://127.0.0.1:{server.port}/"
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("console", lambda message: self._said(message))
        page.on("requestfailed", lambda request: self._failed(request))
        page.on("request", lambda request: self._asked(request.url))
        page.on("response", lambda response: self._answered(response))

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text}")

    def _failed(self, request: Any) -> None:
        # A poll or download that the next page cut off is no failure.
        if "ERR_ABORTED" not in (request.failure or ""):
            self.faults.append(f"failed: {request.url} {request.failure}")

    def _asked(self, url: str) -> None:
        if not url.startswith((self._own, "data:", "blob:")):
            self.faults.append(f"another host: {url}")

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.faults.append(f"{response.status}: {response.url}")
