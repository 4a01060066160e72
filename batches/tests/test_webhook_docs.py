"""What docs/webhooks.md shows works, and names what is so."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from batches.webhooks import deliveries, endpoints, signing
from batches.webhooks.models import DeliveryState
from batches.webhooks.payload import EVENT_TYPES, PROGRESS_STEPS
from batches.webhooks.retries import GIVE_UP_AFTER, LONGEST_WAIT
from batches.webhooks.urls import urlpatterns
from vbatch_site.tests.contract.test_sdks import SDKS
from vbatch_site.tests.pages import untyped

PAGE = (Path(__file__).resolve().parent.parent.parent / "docs" / "webhooks.md").read_text()
PYTHON, TYPESCRIPT = (re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL) for kind in ("python", "typescript"))
EXAMPLE = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0]


def _request(secret: str) -> dict[str, Any]:
    headers = signing.headers("wh_1", int(time.time()), EXAMPLE.encode(), [secret])
    return {"body": EXAMPLE, "headers": {name.lower(): value for name, value in headers.items()}, "secret": secret}


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_the_python_code_takes_a_delivery_and_refuses_a_forged_one(block: str) -> None:
    request = _request(signing.new_secret())
    namespace: dict[str, Any] = {}
    exec(block, namespace)  # noqa: S102 (the page's own code)
    read = namespace["read_event"]
    event = read(request["body"].encode(), request["headers"], request["secret"])
    assert (event["id"] if isinstance(event, dict) else event.id) == json.loads(EXAMPLE)["id"]
    with pytest.raises(Exception, match=r"(?i)signature"):
        read(request["body"].encode() + b" ", request["headers"], request["secret"])


@pytest.mark.parametrize("block", TYPESCRIPT, ids=range(len(TYPESCRIPT)))
def test_the_typescript_code_takes_a_delivery_and_refuses_a_forged_one(
    block: str, request: pytest.FixtureRequest
) -> None:
    folder = Path(request.config.cache.mkdir("sdk-node"))
    SDKS["node"](folder)
    script = folder / f"page-{TYPESCRIPT.index(block)}.mjs"
    script.write_text(
        untyped(block)
        + """
const { body, headers, secret } = JSON.parse(process.argv[2]);
const event = await readEvent(body, headers, secret);
let refused = "";
try { await readEvent(body + " ", headers, secret); } catch (error) { refused = error.message; }
console.log(JSON.stringify([event.id, refused]));
"""
    )
    sent = json.dumps(_request(signing.new_secret()))
    done = subprocess.run(["node", str(script), sent], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    event_id, refused = json.loads(done.stdout)
    assert event_id == json.loads(EXAMPLE)["id"]
    assert "signature" in refused


def test_the_page_names_what_is_so() -> None:
    assert all(f"| `{kind}` |" in PAGE for kind in EVENT_TYPES)
    assert f"{PROGRESS_STEPS[0]}, {PROGRESS_STEPS[1]} or {PROGRESS_STEPS[2]} percent" in PAGE
    assert all(f"`{state}`" in PAGE for state in DeliveryState)
    assert f"for {GIVE_UP_AFTER.total_seconds() / 3600:g} hours" in PAGE
    assert f"up to {LONGEST_WAIT.total_seconds() / 3600:g} hours" in PAGE
    assert f"at least {deliveries.DISABLE_FAILURES} attempts" in PAGE
    assert f"{deliveries.KEPT_FOR.days} days" in " ".join(PAGE.split())
    assert f"can have {endpoints.MAX_ENDPOINTS}" in PAGE
    assert f"up to {endpoints.MAX_SECRET} characters" in PAGE


def test_every_route_is_on_the_page_and_no_other() -> None:
    routes = {"/v1/" + re.sub(r"<str:\w+>", "{id}", str(route.pattern)) for route in urlpatterns}
    assert set(re.findall(r"(/v1/webhook_[\w{}/]+)", PAGE)) == routes
