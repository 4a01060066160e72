"""An operator's day in a real browser, against a real server with the simulated engine."""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from vbatch_site.tests.node import npm_pack
from vbatch_site.tests.servers import MODEL, Server, chat_line

pytest.importorskip("playwright")
from playwright.sync_api import Browser, Page, expect, sync_playwright  # noqa: E402 (skipped above where it is missing)

from vbatch_site.tests import browsers  # noqa: E402
from vbatch_site.tests.browsers import Watch, chromium, sign_in  # noqa: E402
from vbatch_site.tests.screens import pages  # noqa: E402
from vbatch_site.tests.worlds import furnish  # noqa: E402

pytestmark = pytest.mark.slow

PATIENCE = 60_000  # milliseconds; the machine may be busy


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if browsers.path_of_chromium() is None:
        reason = "chromium is not installed (on Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright, chromium(playwright) as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("console"), VBATCH_SIM_LINES_PER_SECOND="20") as running:
        yield running


@pytest.fixture(scope="module")
def world(server: Server) -> dict[str, str]:
    return furnish(server, chat_line)


@pytest.fixture
def page(browser: Browser, server: Server, world: dict[str, str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, permissions=["clipboard-write"])
    opened = context.new_page()
    opened.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield opened
    context.close()


def _go_to(page: Page, name: str, address: str) -> None:
    """Follow a link of the menu; what is clicked on the page then needs the page's script."""
    page.get_by_role("link", name=name).first.click()
    page.wait_for_url(f"**{address}", wait_until="load")


def _upload(page: Page, path: Path) -> None:
    page.get_by_role("link", name="New batch").first.click()
    page.set_input_files("#upload-file", path)
    page.wait_for_url("**/console/batches/new/file-*")


def test_an_operators_day(page: Page, server: Server, tmp_path: Path) -> None:
    watch = Watch(page, server)
    sign_in(page, server)
    expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()

    bad = tmp_path / "october.jsonl"
    bad.write_text(chat_line("t-1") + "{oops\n")
    _upload(page, bad)
    check = page.locator("#check")
    expect(check).to_contain_text("The batch would fail")
    expect(check).to_contain_text("invalid_json_line")

    good = tmp_path / "october-2.jsonl"
    lines = [chat_line(f"t-{i}", f"Ticket {i}, please.") for i in range(1, 61)]
    lines[4] = chat_line("t-5", "[[sim:400]]")
    good.write_text("".join(lines))
    _upload(page, good)
    expect(check).to_contain_text("Every line is good")
    page.fill("#metadata", "description=October tickets")
    page.get_by_role("button", name="Review").click()
    expect(page.locator("#python")).to_contain_text("client.batches.create(")
    page.get_by_role("button", name="Create batch").click()
    page.wait_for_url(re.compile("/console/batches/batch_"))
    batch_id = page.url.rpartition("/")[2]

    # Without a reload: the mark is gone if the page is loaded again.
    page.evaluate("window.mark = 1")
    completed = page.locator("#go-completed")
    expect(completed).not_to_have_text("0")
    expect(page.locator("#batch .vb-status").first).to_have_text("completed")
    assert page.evaluate("window.mark") == 1
    assert page.locator("[data-live]").count() == 0, "an ended batch is not asked for again"

    page.locator("#go-failed").click()
    expect(page.get_by_role("heading", name="Failures by code")).to_be_visible()
    page.get_by_role("link", name="t-5", exact=True).click()
    expect(page.locator("#asked-title")).to_be_visible()
    expect(page.locator(".vb-note.vb-tone-danger").first).to_be_visible()

    page.goto(f"http://127.0.0.1:{server.port}/console/batches/{batch_id}")
    with page.expect_download() as download:
        page.get_by_role("link", name="Download output").click()
    text = Path(download.value.path()).read_text()
    assert text.count("\n") == 59
    assert '"t-1"' in text

    page.locator("#act-retry").click()
    page.locator("#ask-retry").get_by_role("button", name="Retry failed").click()
    expect(page.locator(".vb-notes")).to_be_visible()

    # More than could be done before it is cancelled, however slow the machine.
    other = server.create([chat_line(f"c-{i}") for i in range(4000)])
    page.goto(f"http://127.0.0.1:{server.port}/console/batches/{other}")
    # What was typed is not updated away, neither while it is typed nor before it is sent.
    page.fill("#priority", "7")
    page.keyboard.press("Tab")
    expect(page.locator("#batch [data-updated]")).to_have_text("Updates paused")
    page.keyboard.press("Enter")
    expect(page.locator(".vb-notes")).to_be_visible()
    expect(page.locator("#priority")).to_have_value("7")

    page.wait_for_load_state("load")
    # An update that comes between press and release does not take the click away.
    page.locator("#act-cancel").hover()
    page.mouse.down()
    page.evaluate("htmx.ajax('GET', location.pathname, {source: '#batch', target: '#batch', swap: 'outerHTML'})")
    page.mouse.up()
    page.locator("#ask-cancel").get_by_role("button", name="Cancel").click()
    expect(page.locator("#batch .vb-status").first).to_have_text(re.compile("cancell"))
    server.wait(other, 60)
    expect(page.locator("#batch .vb-status").first).to_have_text("cancelled")

    _go_to(page, "API keys", "/console/keys")
    page.fill("#key-name", "October")
    page.get_by_role("button", name="Issue key").click()
    key = page.locator("#new-key").inner_text()
    assert _status(server, key) == 200
    _go_to(page, "Done", "/console/keys")
    assert key not in page.content()
    page.get_by_role("button", name="Revoke October").click()
    page.locator("dialog[open]").get_by_role("button", name="Revoke").click()
    expect(page.locator(".vb-notes")).to_contain_text("is revoked")
    assert _status(server, key) == 401
    assert watch.faults == []


def _status(server: Server, key: str) -> int:
    return server.request("GET", "/v1/models", key=key)[0]


def test_a_service_is_started_from_a_recipe_and_cancelled(page: Page, server: Server) -> None:
    watch = Watch(page, server)
    sign_in(page, server)
    page.get_by_role("link", name="Services").first.click()
    page.get_by_role("link", name="Start inference/vllm", exact=True).click()
    page.fill("#p-VLLM_MODEL", MODEL)
    page.fill("#p-gpu", "")
    page.get_by_role("button", name="Start service").click()
    page.wait_for_url(re.compile(r"/console/services/\d+$"))
    page.locator("#act-cancel").click()
    page.locator("#cancel-service").get_by_role("button", name="Cancel service").click()
    expect(page.locator("#service .vb-status").first).to_have_text("cancelled")
    assert watch.faults == []


def test_maintenance_is_prepared_and_ticked_rows_are_not_updated_away(page: Page, server: Server) -> None:
    watch = Watch(page, server)
    sign_in(page, server)
    _go_to(page, "System", "/console/system")
    page.locator("#act-pause-intake").click()
    page.locator("#pause-intake").get_by_role("button", name="Take none").click()
    expect(page.locator(".vb-notes")).to_contain_text("New batches are not taken")
    page.locator("#act-resume-intake").click()
    expect(page.locator("#act-pause-intake")).to_be_visible()

    _go_to(page, "Workers and GPUs", "/console/workers")
    page.locator("[id^=act-stop-]:not([aria-disabled])").click()
    expect(page.locator("dialog[open]")).to_contain_text("Stop this worker after what it has in hand?")
    page.locator("dialog[open]").get_by_role("button", name="Back").click()
    page.locator("[id^=act-drain-]:not([aria-disabled])").click()
    page.locator("[id^=act-resume-]:not([aria-disabled])").click()
    expect(page.locator(".vb-notes")).to_contain_text("takes work again")

    running = server.create([chat_line(f"m-{i}") for i in range(4000)])
    page.goto(f"http://127.0.0.1:{server.port}/console/batches")
    cancel, retry = page.locator("input[data-select=cancel]"), page.locator("input[data-select=retry]")
    cancel.first.check()
    retry.first.check()
    expect(page.locator("#batches [data-updated]")).to_have_text("Updates paused")
    page.get_by_role("button", name="Retry what failed in 1 selected").click()
    expect(page.locator("#retry-selected-title")).to_have_text("Retry 1 batches?")
    page.locator("#retry-selected").get_by_role("button", name="Back").click()
    cancel.first.uncheck()
    expect(page.get_by_role("button", name=re.compile("^Cancel"))).to_be_hidden()
    server.request("POST", f"/v1/batches/{running}/cancel")
    assert watch.faults == []


def test_an_upload_goes_on_after_the_connection_broke(page: Page, server: Server, tmp_path: Path) -> None:
    sign_in(page, server)
    file = tmp_path / "large.jsonl"
    # Three parts of 4 MiB, so that there is a middle to break.
    file.write_text("".join(chat_line(f"l-{i}", "x" * 4000) for i in range(2600)))
    broken = []

    def breaks(route: Any) -> None:
        broken.append(route.request.url)
        if len(broken) in (2, 3):
            route.abort("connectionreset")
        else:
            route.continue_()

    def comes_late(route: Any) -> None:
        """Let the file be chosen before the page's script is there."""
        page.wait_for_timeout(500)
        route.continue_()

    page.route("**/console/uploads/*/parts", breaks)
    page.route("**/upload*.js", comes_late)
    page.get_by_role("link", name="New batch").first.click()
    page.set_input_files("#upload-file", file)
    page.wait_for_url("**/console/batches/new/file-*")
    assert len(broken) == 5, "three parts, and the second one three times"
    expect(page.locator("#check")).to_contain_text("Every line is good")


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest) -> str:
    """The source of axe-core, from the package registry."""
    folder = Path(request.config.cache.mkdir("axe-core"))
    source = folder / "package" / "axe.min.js"
    if not source.exists():
        with tarfile.open(npm_pack("axe-core", folder)) as archive:
            archive.extractall(folder, filter="data")
    return source.read_text()


# What a person can act on; the rest of a page needs no keyboard.
_CONTROLS = "a, button, input, select, textarea, summary, [role=button], [x-on\\:click]"

_UNREACHABLE = """
(controls) => [...document.querySelectorAll(controls)].filter((control) => {
  if (!control.checkVisibility({visibilityProperty: true})) return false;
  if (control.disabled || control.type === "hidden") return false;
  const focusable = control.tabIndex >= 0 && (control.matches("[tabindex]") || !control.matches("a:not([href])"));
  const label = [control.getAttribute("aria-label"), control.title, control.textContent, control.placeholder,
    ...[...(control.labels ?? [])].map((one) => one.textContent), control.querySelector("img")?.alt];
  return !focusable || !label.some((text) => text?.trim());
}).map((control) => control.outerHTML.slice(0, 160))
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_a_serious_fault_for_people_who_cannot_see_it_well(
    browser: Browser, server: Server, world: dict[str, str], axe: str, theme: Any
) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    watch = Watch(page, server)
    sign_in(page, server)
    faults: list[tuple[str, ...]] = []
    for name, address in pages(world).items():
        page.goto(f"http://127.0.0.1:{server.port}{address}")
        page.wait_for_load_state("load")
        faults += [(name, "no keyboard or no name", html) for html in page.evaluate(_UNREACHABLE, _CONTROLS)]
        if name.startswith("admin-"):
            continue
        page.evaluate(axe)
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 900})
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
            for fault in found["violations"]:
                if fault["impact"] in ("serious", "critical"):
                    faults.append((name, str(width), fault["id"], *[node["html"][:160] for node in fault["nodes"][:3]]))
        if (wide := page.evaluate("document.documentElement.scrollWidth")) > 390:
            faults.append((name, f"{wide} pixels wide on a phone"))
        page.set_viewport_size({"width": 1280, "height": 900})
    context.close()
    assert faults == []
    assert watch.faults == []


_FOCUSED = """
() => {
  const at = document.activeElement, style = getComputedStyle(at);
  if (at === document.body) return ["", true];
  return [at.id || at.getAttribute("aria-label") || at.textContent.trim().slice(0, 40), style.outlineStyle !== "none"];
}
"""


def _tab(page: Page, times: int) -> dict[str, bool]:
    """Press Tab and return what had the focus, and whether that could be seen."""
    found = {}
    for _ in range(times):
        page.keyboard.press("Tab")
        name, seen = page.evaluate(_FOCUSED)
        found[name] = seen
    return found


def test_the_day_needs_no_mouse(page: Page, server: Server, world: dict[str, str]) -> None:
    sign_in(page, server)
    page.goto(f"http://127.0.0.1:{server.port}/console/batches")
    found = _tab(page, 60)
    assert {"q", "model", "endpoint", "project", "choice-all", "Skip to content", "Menu"} <= found.keys()
    assert [name for name, seen in found.items() if not seen] == []

    # Unfold's own menu, on its own page.
    page.goto(f"http://127.0.0.1:{server.port}/admin/batches/batch/")
    account = page.get_by_role("button", name="boss")
    account.focus()
    page.keyboard.press("Enter")
    expect(account).to_have_attribute("aria-expanded", "true")
    expect(page.get_by_role("link", name="Change password")).to_be_visible()
    page.keyboard.press("Escape")
    expect(account).to_have_attribute("aria-expanded", "false")
    expect(account).to_be_focused()


FIRST_VISIT = 300 * 1024  # bytes


def _size(request: Any) -> int:
    """Return what an answer weighed on its way, compressed as it was."""
    sizes = request.sizes()
    return int(sizes["responseBodySize"] + sizes["responseHeadersSize"])


def _first_visit(browser: Browser, page: Page, url: str) -> dict[str, int]:
    """Return what each answer weighs for a browser that has nothing in its cache."""
    context = browser.new_context(storage_state=page.context.storage_state())
    fresh = context.new_page()
    fresh.set_default_timeout(PATIENCE)
    answers: list[Any] = []
    fresh.on("requestfinished", lambda request: answers.append(request))
    fresh.goto(url)
    # A busy browser may need longer to see that it wants a font than the network counts as idle after.
    fresh.evaluate("document.fonts.ready.then(() => true)")
    fresh.wait_for_load_state("networkidle")
    weights = {answer.url.rpartition("/")[2]: _size(answer) for answer in answers}
    context.close()
    return weights


def test_a_first_visit_loads_little(browser: Browser, page: Page, server: Server, world: dict[str, str]) -> None:
    sign_in(page, server)
    for address in ("/console/", "/console/batches", f"/console/batches/{world['completed']}", "/admin/batches/batch/"):
        weights = _first_visit(browser, page, f"http://127.0.0.1:{server.port}{address}")
        assert any(name.startswith("inter-regular") for name in weights), weights
        assert not [name for name in weights if name.startswith("Inter-")], "whole fonts are for rare characters"
        assert sum(weights.values()) < FIRST_VISIT, (address, weights)


def test_pages_are_small_and_their_assets_are_kept_by_the_browser(server: Server, page: Page) -> None:
    sign_in(page, server)
    cookie = "; ".join(f"{c['name']}={c['value']}" for c in page.context.cookies())
    for address in ("/console/", "/console/batches", "/console/files", "/console/keys"):
        url = f"http://127.0.0.1:{server.port}{address}"
        headers = {"Cookie": cookie, "Accept-Encoding": "gzip", "Accept": "text/html"}
        with urlopen(Request(url, headers=headers)) as sent:  # noqa: S310 (our own server)
            assert sent.headers["Content-Encoding"] == "gzip"
            assert len(sent.read()) < 300 * 1024
    text = page.content()
    for asset in re.findall(r'(?:src|href)="(/static/[^"]+)"', text):
        with urlopen(f"http://127.0.0.1:{server.port}{asset}") as sent:  # noqa: S310 (our own server)
            assert "immutable" in sent.headers["Cache-Control"], asset
