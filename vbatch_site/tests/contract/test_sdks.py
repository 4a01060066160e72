"""The official SDKs, unmodified: one flow each, checked item by item."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vbatch_site.tests.servers import MODEL, Server

pytestmark = pytest.mark.slow

CLIENTS = Path(__file__).parent / "clients"
INSTALL_SECONDS = 180
FLOW_SECONDS = 120

Report = dict[str, Any]


def _cannot(reason: str) -> None:
    """Skip where an SDK can't be had, and fail where it must be: in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def _install(command: list[str], into: Path, done: Path) -> None:
    """Install once; the folder is kept between runs, and removed when the install broke off."""
    if done.exists():
        return
    try:
        subprocess.run(command, cwd=into, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        shutil.rmtree(into, ignore_errors=True)
        _cannot(f"{command[0]} could not install the SDK: {error}")


def _python_3(_: Path) -> tuple[list[str], dict[str, str]]:
    return [sys.executable, str(CLIENTS / "flow.py")], {}


def _python_2(folder: Path) -> tuple[list[str], dict[str, str]]:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "openai>=2,<3"]
    _install(pip, folder, folder / "openai" / "py.typed")
    return [sys.executable, str(CLIENTS / "flow.py")], {"PYTHONPATH": str(folder)}


def _node(folder: Path) -> tuple[list[str], dict[str, str]]:
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            _cannot(f"{program} is not installed")
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), "openai"]
    _install(npm, folder, folder / "node_modules" / "openai" / "package.json")
    # Node looks for packages beside the script.
    shutil.copy(CLIENTS / "flow.mjs", folder / "flow.mjs")
    return ["node", str(folder / "flow.mjs")], {}


SDKS = {"python 3": _python_3, "python 2": _python_2, "node": _node}
MAJORS = {"python 3": "3.", "python 2": "2.", "node": ("6.", "7.")}  # Node 20 resolves to 6, Node 22 to 7


@pytest.fixture(scope="session", params=SDKS, ids=[name.replace(" ", "-") for name in SDKS])
def report(request: pytest.FixtureRequest, sim_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """What one SDK saw of a server on its way through files, batches and models."""
    folder = request.config.cache.mkdir(f"sdk-{request.param.replace(' ', '-')}")
    command, environment = SDKS[request.param](Path(folder))
    work = tmp_path_factory.mktemp("sdk")
    done = subprocess.run(
        [*command, sim_server.base_url, sim_server.key, MODEL, str(work)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=FLOW_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: Report = json.loads(done.stdout)
    assert found["version"].startswith(MAJORS[request.param])
    return found


def _assert_failure(failure: Report, kind: str, status: int, **wanted: str | None) -> None:
    assert (failure["class"], failure["status"], failure["requests"]) == (kind, status, 1), failure
    assert failure["type"] == "invalid_request_error"
    assert failure["request_id"].startswith("req_")
    for key, value in wanted.items():
        assert failure[key] == value, failure


def test_items_1_and_2_and_15_and_22_uploads_of_every_kind_arrive(report: Report) -> None:
    assert report["file"]["filename"] == "my \u5165\u529b.jsonl"
    assert (report["file"]["status"], report["file"]["status_details"]) == ("processed", None)
    assert report["from_bytes"]["bytes"] == report["file"]["bytes"]
    assert report["from_bytes"]["filename"] in ("upload", "unknown_file")
    assert report["streamed"]["bytes"] == report["streamed_size"]


def test_item_8_the_sdk_shows_request_ids(report: Report) -> None:
    names = ["file_request_id", "raw_request_id", "deleted_request_id"]
    assert all(report[name].startswith("req_") for name in names)
    assert len({report[name] for name in names}) == 3


def test_item_19_the_sdk_sends_a_lifetime(report: Report) -> None:
    assert report["expiring"]["expires_at"] == report["expiring"]["created_at"] + 3600


def test_items_23_and_27_and_36_and_39_refusals_become_the_sdks_errors(report: Report) -> None:
    _assert_failure(report["not_jsonl"], "BadRequestError", 400, param=None, code=None)
    assert "Invalid file format for Batch API. Must be .jsonl" in report["not_jsonl"]["message"]
    _assert_failure(report["purpose"], "BadRequestError", 400, param="purpose", code=None)
    _assert_failure(report["missing"], "NotFoundError", 404, param="id", code=None)
    _assert_failure(report["private"], "BadRequestError", 400, param=None)


def test_item_33_auto_paging_yields_each_file_once(report: Report) -> None:
    assert report["paged"][:3] == report["made"][::-1]
    assert len(report["paged"]) == len(set(report["paged"]))


def test_item_37_the_sdk_deletes_a_file(report: Report) -> None:
    deleted = {key: report["deleted"][key] for key in ("id", "object", "deleted")}
    assert deleted == {"id": report["file"]["id"], "object": "file", "deleted": True}


def test_items_6_and_38_content_comes_back_as_text_lines_and_stream(report: Report) -> None:
    assert report["text_is_same"] and report["lines"]
    assert report["streamed_back"] == report["streamed_size"]


def test_item_40_waiting_for_processing_returns_at_once(report: Report) -> None:
    assert report["waited"]["status"] == "processed"
    assert report["waited_requests"] == 1, "the SDK had to ask again"


def test_items_43_and_46_the_sdk_makes_a_batch(report: Report) -> None:
    batch = report["created"]
    assert (batch["status"], batch["metadata"]) == ("validating", {"team": "\u7814\u7a76"})
    assert batch["expires_at"] == batch["created_at"] + 86_400
    assert batch["usage"]["total_tokens"] == 0


def test_item_45_null_metadata_stays_null(report: Report) -> None:
    assert report["null_metadata"] is None


def test_item_74_the_sdk_reads_output_and_errors(report: Report) -> None:
    assert (report["done"]["status"], report["done"]["model"]) == ("completed", MODEL)
    assert report["done"]["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
    assert [line["custom_id"] for line in report["output"]] == ["good"]
    assert report["output"][0]["response"]["body"]["choices"][0]["message"]["content"]
    assert [(line["custom_id"], line["response"]["status_code"]) for line in report["errors"]] == [("bad", 400)]


def test_items_4_and_84_and_87_the_sdk_cancels(report: Report) -> None:
    assert report["cancelling"]["status"] in ("cancelling", "cancelled")
    assert report["cancelled"]["status"] == report["cancel_again"]["status"] == "cancelled"


def test_item_88_a_cancel_that_is_too_late_is_one_request(report: Report) -> None:
    _assert_failure(report["late_cancel"], "ConflictError", 409, param=None, code=None)
    assert "Cannot cancel a batch with status 'completed'." in report["late_cancel"]["message"]


def test_item_90_an_unknown_batch_is_the_sdks_not_found(report: Report) -> None:
    _assert_failure(report["unknown_batch"], "NotFoundError", 404, param=None, code=None)


def test_item_91_batches_are_paged_newest_first(report: Report) -> None:
    newest = [report["cancelled"]["id"], report["done"]["id"]]
    assert report["listed"] == report["listed_by_default"] == newest


def test_item_97_the_sdk_finds_models_by_names_with_slashes(report: Report) -> None:
    assert MODEL in report["models"]
    assert (report["model"]["id"], report["model"]["object"]) == (MODEL, "model")
    assert isinstance(report["model"]["created"], int)
    _assert_failure(report["unknown_model"], "NotFoundError", 404, code="model_not_found", param="model")


def test_items_10_and_11_a_wrong_key_is_the_sdks_authentication_error(report: Report) -> None:
    _assert_failure(report["wrong_key"], "AuthenticationError", 401, code="invalid_api_key")
