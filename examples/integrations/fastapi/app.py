"""A web application around batches: upload, follow, be told, keep the answers. See README.md beside it."""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import openai
from fastapi import BackgroundTasks, FastAPI, HTTPException, Query, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from jobs import Jobs
from signature import BadSignatureError, check
from store import Store

logging.basicConfig(
    level=os.environ.get("LOG_LEVEL", "INFO").upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
)
logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for every poll
logger = logging.getLogger("app")

WEBHOOK_URL = os.environ.get("WEBHOOK_URL", "")
WEBHOOK_SECRET = os.environ.get("WEBHOOK_SECRET", "")
POLL_SECONDS = float(os.environ.get("POLL_SECONDS", "10"))
if WEBHOOK_URL and not WEBHOOK_SECRET:
    raise SystemExit("WEBHOOK_SECRET is empty: webhooks that are not signed can't be trusted.")

WEBHOOK = {"url": WEBHOOK_URL, "secret": WEBHOOK_SECRET} if WEBHOOK_URL else None

client = openai.OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY
store = Store(os.environ.get("DATABASE", "jobs.sqlite3"))
jobs = Jobs(client, store, WEBHOOK)


async def poll() -> None:
    """Look at open jobs for ever: a webhook may be lost, and a server in a closed network can't send any."""
    while True:
        for job in await run_in_threadpool(store.open_jobs):
            await follow(job)
        await asyncio.sleep(POLL_SECONDS)


async def follow(job: str) -> None:
    """Look at one job; what goes wrong is tried again at the next look."""
    try:
        await run_in_threadpool(jobs.refresh, job)
    except openai.APIError as error:
        logger.warning("%s could not be looked at: %s", job, type(error).__name__)
    except Exception:
        logger.exception("%s could not be followed", job)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Poll as long as the application runs."""
    poller = asyncio.create_task(poll())
    yield
    poller.cancel()
    with suppress(asyncio.CancelledError):
        await poller


app = FastAPI(title="Jobs on vbatch", lifespan=lifespan)


@app.exception_handler(openai.APIStatusError)
async def refused(_: Request, error: openai.APIStatusError) -> JSONResponse:
    """Pass on what the server refused; a key that it does not take is our fault, not the caller's."""
    logger.warning("the server refused: %s %s %s", error.status_code, error.code, error.request_id)
    if error.status_code in (401, 403):
        return JSONResponse({"detail": "This application may not use the server."}, 502)
    message = error.body.get("message") if isinstance(error.body, dict) else None
    headers = {name: error.response.headers[name] for name in ("retry-after",) if name in error.response.headers}
    return JSONResponse({"detail": message or str(error), "code": error.code}, error.status_code, headers)


@app.exception_handler(openai.APIConnectionError)
async def unreachable(_: Request, error: openai.APIConnectionError) -> JSONResponse:
    """Say that the server can't be reached."""
    logger.error("the server can't be reached: %s", error)
    return JSONResponse({"detail": "The batch server can't be reached."}, 503, {"retry-after": "10"})


@app.post("/jobs", status_code=202)
def submit(file: UploadFile, background: BackgroundTasks) -> dict[str, Any]:
    """Take a JSONL file of requests."""
    try:
        job = jobs.submit(file.filename or "requests.jsonl", file.file)
    except ValueError:
        raise HTTPException(422, "The first line is not JSON.") from None
    # A short batch may have ended, and its webhook come, before the job was written down under the batch's id.
    background.add_task(follow, job)
    return _job(job)


@app.get("/jobs")
def list_jobs(limit: Annotated[int, Query(ge=1, le=100)] = 20) -> list[dict[str, Any]]:
    """List the newest jobs."""
    return store.jobs(limit)


@app.get("/jobs/{job}")
def show(job: str) -> dict[str, Any]:
    """Show one job, as it was last seen."""
    return _job(job)


@app.get("/jobs/{job}/results")
def results(job: str, after: str = "", limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> dict[str, Any]:
    """Show answers and errors of a job that has ended."""
    found = _job(job)
    rows = store.results(job, after, limit)
    for row in rows:
        row["answer"] = json.loads(row["answer"]) if row["answer"] else None
    return {"status": found["status"], "complete": bool(found["has_results"]), "results": rows}


@app.post("/jobs/{job}/cancel")
async def cancel(job: str) -> dict[str, Any]:
    """Cancel a job; what was answered is kept."""
    _job(job)
    await run_in_threadpool(jobs.cancel, job)
    await follow(job)
    return _job(job)


@app.post("/webhooks/vbatch", status_code=204)
async def receive(request: Request, background: BackgroundTasks) -> Response:
    """Hear that a batch has ended: check, answer at once, work afterwards."""
    body = await request.body()
    try:
        webhook_id = check(body, request.headers, WEBHOOK_SECRET)
    except BadSignatureError as error:
        logger.warning("webhook refused: %s", error)
        raise HTTPException(401, str(error)) from None
    event = json.loads(body)
    job = event.get("batch_id") or event.get("data", {}).get("id") or event.get("id")
    is_new = await run_in_threadpool(store.is_new, webhook_id)
    if is_new:
        logger.info("webhook %s: %s %s", webhook_id, event.get("type"), job)
        if await run_in_threadpool(store.job, job) is not None:
            background.add_task(follow, job)
    return Response(status_code=204)


@app.get("/health")
def health() -> JSONResponse:
    """Say whether the server can be reached."""
    try:
        client.with_options(timeout=5, max_retries=0).models.list()
    except openai.APIError:
        return JSONResponse({"status": "unavailable"}, 503)
    return JSONResponse({"status": "ok"})


def _job(job: str) -> dict[str, Any]:
    found = store.job(job)
    if found is None:
        raise HTTPException(404, "There is no such job.")
    return found
