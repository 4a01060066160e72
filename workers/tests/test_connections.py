"""What comes over a connection to an engine: whole answers, or the news that there is none."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from workers import connections
from workers.connections import Connections, Lost

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
