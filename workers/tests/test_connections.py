"""What comes over a connection to an engine: whole answers, or the news that there is none."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, Future
from contextlib import ExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from batches.leases import Lease
from batches.planning import PlannedLine
from batches.states import BatchStatus
from batches.tests.rows import new_batch
from vbatch_site.tests.servers import chat_line
from workers import connections, slot
from workers.attached import AttachedEngine
from workers.connections import Connections, Lost
from workers.lines import Held, Line, envelope
from workers.runner import MAX_CULPRITS, Runner
from workers.services import Fed

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


class Engine:
    """Answers each request with the next of its answers, given in pieces; None closes the connection instead."""

    def __init__(self, *answers: list[bytes] | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.closed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while self.answers:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                answer = self.answers.pop(0)
                if answer is None:
                    return
                for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
            await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self.closed.set()


@asynccontextmanager
async def _client(engine: Engine, seconds: float = 20) -> AsyncIterator[Connections]:
    async with await asyncio.start_server(engine.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = Connections(f"http://127.0.0.1:{port}", "secret", seconds)
        try:
            yield client
        finally:
            client.close()


def test_answers_come_whole_however_they_are_cut_and_the_connection_is_kept() -> None:
    async def scene() -> None:
        continues = b"HTTP/1.1 100 Continue\r\n\r\n"
        pieces = [CHUNKED[i : i + 7] for i in range(0, len(CHUNKED), 7)]
        engine = Engine([WHOLE], pieces, [continues, WHOLE], [b"HTTP/1.1 400 Bad\r\nContent-Length: 2\r\n\r\n{}"])
        async with _client(engine) as client:
            answers = [await client.post("/v1/x", body) for body in (b"{}", b'{"a":1}', b"", b"1" * 300_000)]
        assert answers == [(200, b"hello"), (200, b"hello world"), (200, b"hello"), (400, b"{}")]
        assert engine.connections == 1
        assert engine.requests[1].startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"\r\nAuthorization: Bearer secret\r\n" in engine.requests[1]
        assert engine.requests[1].endswith(b'\r\n\r\n{"a":1}')

    asyncio.run(scene())


@pytest.mark.parametrize(
    "answer",
    [None, [WHOLE[:-1]], [CHUNKED[:-5]], [b"HTTP/1.1 200 OK\r\n\r\nwho knows how long"], [b"SSH-2.0-OpenSSH\r\n"]],
    ids=["none", "cut", "cut chunks", "no length", "no HTTP"],
)
def test_what_is_not_whole_is_lost(answer: list[bytes] | None) -> None:
    async def scene() -> None:
        engine = Engine(answer)
        if answer is not None:
            # The connection closes after the piece.
            engine.answers.append(None)

            async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readuntil(b"\r\n\r\n")
                writer.writelines(answer)
                await writer.drain()
                writer.close()

            engine.serve = cut  # type: ignore[method-assign]
        async with _client(engine) as client:
            with pytest.raises(Lost):
                await client.post("/v1/x", b"{}")

    asyncio.run(scene())


def test_a_request_that_is_given_up_closes_its_connection_so_that_the_engine_stops() -> None:
    async def scene() -> None:
        engine = Engine([], [])
        async with _client(engine) as client:
            task = asyncio.create_task(client.post("/v1/x", b"{}"))
            while not engine.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait_for(engine.closed.wait(), 10)
        late = Engine([], [])
        async with _client(late, seconds=0.5) as client:
            with pytest.raises(TimeoutError):
                await client.post("/v1/x", b"{}")
            await asyncio.wait_for(late.closed.wait(), 10)

    asyncio.run(scene())


def test_a_connection_that_was_closed_or_idle_for_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        last = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
        engine = Engine([last], [WHOLE], [WHOLE])
        async with _client(engine) as client:
            assert await client.post("/v1/x", b"{}") == (200, b"ok")
            assert await client.post("/v1/x", b"{}") == (200, b"hello")
            monkeypatch.setattr(connections, "KEEP_ALIVE_SECONDS", 0.0)
            assert await client.post("/v1/x", b"{}") == (200, b"hello")
            assert engine.connections == 3

    asyncio.run(scene())


def test_an_engine_that_is_not_there_is_an_oserror() -> None:
    async def scene() -> None:
        with pytest.raises(OSError):
            await Connections("http://127.0.0.1:1", "", 5).post("/v1/x", b"{}")

    asyncio.run(scene())


def test_a_host_that_takes_no_connection_and_refuses_none_is_one_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECT_SECONDS", 0.2)
    with ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with pytest.raises(Lost):
            asyncio.run(Connections(f"http://127.0.0.1:{full.getsockname()[1]}", "", 5).post("/v1/x", b"{}"))


def _held(path: Path, batch_id: str = "batch") -> Held:
    """Return a lease in hand."""
    window = timezone.now() + timedelta(hours=1)
    lease = Lease(1, 1, batch_id, 1, 1, "m", "", "/v1/x", "input", window, ())
    return Held(lease, os.open(path, os.O_RDONLY))


@asynccontextmanager
async def _running(
    folder: Path, text: bytes, engine: Engine, *numbers: int
) -> AsyncIterator[tuple[Runner, slot.Engine]]:
    """Yield a runner that has lines of a text in an engine."""
    (folder / "input").write_bytes(text)
    async with await asyncio.start_server(engine.serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        attached = AttachedEngine(Fed(1, "job", "m", [], url, "key", None, folder, None))
        held, runner, running = (
            _held(folder / "input"),
            Runner("a worker", {}),
            slot.Engine(attached, attached.client, 1),
        )
        runner._held.append(held)
        try:
            for number in numbers:
                runner._start(Line(held, PlannedLine(number, 0, len(text))), running)
            yield runner, running
        finally:
            held.close()
            await running.client.close()


async def _die(runner: Runner, engine: slot.Engine) -> None:
    """Have the engine die, and start no other."""
    engine.process.is_alive = False
    await asyncio.wait_for(runner._engine_died(engine), 10)
    assert runner._loading
    runner._loading.cancel()
    await asyncio.gather(runner._loading, return_exceptions=True)


def test_lines_in_an_engine_whose_host_lost_its_power_are_taken_back_at_once(tmp_path: Path) -> None:
    async def scene() -> None:
        silent = Engine([], [])
        async with _running(tmp_path, chat_line("a").encode(), silent, 1, 2) as (runner, engine):
            while len(silent.requests) < 2:
                await asyncio.sleep(0.01)
            # The service's row says so; over the connections nothing comes.
            await _die(runner, engine)
            assert sorted(line.place.number for group in runner._suspects for line in group) == [1, 2]

    asyncio.run(scene())


class _Later(Executor):
    """Keeps what it is given for the test's own thread, whose transaction has the rows."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []

    def submit(self, function: Any, /, *arguments: Any, **more: Any) -> Any:
        self.calls.append(partial(function, *arguments, **more))
        future: Future[None] = Future()
        future.set_result(None)
        return future


@pytest.mark.django_db
def test_a_batch_whose_lines_kill_engines_takes_no_other_along(tmp_path: Path) -> None:
    killer, other, later = new_batch(), new_batch(), _Later()
    for batch in (killer, other):
        batch.move(BatchStatus.IN_PROGRESS, total=6, model="m")

    async def scene() -> None:
        async with _running(tmp_path, b"{}", Engine()) as (runner, engine):
            runner._database = later  # type: ignore[assignment]
            runner._held = [_held(tmp_path / "input", batch.pk) for batch in (killer, other)]
            for number in range(1, MAX_CULPRITS + 1):
                # The only line that was in the engine.
                runner._in_flight = {Line(runner._held[0], PlannedLine(number, 0, 2))}
                await _die(runner, engine)
            for held in runner._held:
                held.close()

    asyncio.run(scene())
    for call in later.calls:
        call()
    for batch in (killer, other):
        batch.refresh_from_db()
    assert (killer.status, killer.abort_code) == (BatchStatus.FINALIZING, "engine_unavailable")
    assert other.status == BatchStatus.IN_PROGRESS


def test_a_line_whose_bytes_went_bad_fails_alone(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _running(tmp_path, b'{"custom_id": "\xff"}', Engine(), 1) as (runner, _):
            while not len(runner._outbox):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0)
            assert [outcome.error_code for _, outcome in runner._outbox._finished] == ["line_unreadable"]
            assert runner._fault is None

    asyncio.run(asyncio.wait_for(scene(), 10))


def test_a_refusal_that_is_not_utf_8_is_passed_on_as_far_as_it_can_be_read() -> None:
    assert (
        json.loads(envelope(b'{"error": {"message": "\xff"}}'))["error"]["message"]
        == '{"error": {"message": "\ufffd"}}'
    )
