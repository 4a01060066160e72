"""Webhook receivers for tests: they take requests on a socket of their own and answer as they are told."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Behaviour = int | Callable[[socket.socket], None]


@dataclass
class Received:
    """One request."""

    path: str
    headers: dict[str, str]  # lower-case names
    body: bytes
    address: str  # that it was sent to
    at: float = field(default_factory=time.time)


def _read(connection: socket.socket) -> Received | None:
    data = b""
    while b"\r\n\r\n" not in data:
        block = connection.recv(65536)
        if not block:
            return None
        data += block
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", 0)):
        block = connection.recv(65536)
        if not block:
            return None
        body += block
    return Received(first.split(" ")[1], headers, body, connection.getsockname()[0])


def status(code: int, *headers: str, body: bytes = b"") -> Callable[[socket.socket], None]:
    """Answer with a status, headers and a body."""
    lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""]
    return lambda connection: connection.sendall("\r\n".join(lines).encode() + body)


class Receiver:
    """Listens until the block ends; request n gets behaviour n, and those after the last get the last."""

    def __init__(self, *behaviours: Behaviour, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.behaviours = list(behaviours) or [200]
        self.received: list[Received] = []
        self.connections = 0
        self._tls = tls
        self._taking = threading.Lock()
        self._closing = threading.Event()
        self._socket = socket.create_server((host, 0), backlog=128)
        self.port = self._socket.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{host}:{self.port}/hook"

    def __enter__(self) -> "Receiver":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closing.set()
        # Closing alone leaves the port open while a thread waits in accept().
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with self._tls.wrap_socket(connection, server_side=True) if self._tls else connection as stream:
                request = _read(stream)
                if request is None:
                    return
                with self._taking:
                    self.received.append(request)
                    behaviour = self.behaviours[min(len(self.received), len(self.behaviours)) - 1]
                (status(behaviour) if isinstance(behaviour, int) else behaviour)(stream)
        except OSError:
            return

    # Ways to misbehave.

    def hang(self, connection: socket.socket) -> None:
        """Say nothing until the test is over."""
        self._closing.wait(60)

    def reset(self, connection: socket.socket) -> None:
        """Cut the connection off."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def drip(self, connection: socket.socket) -> None:
        """Send a header line that never ends, a byte at a time."""
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not self._closing.wait(0.05):
            connection.sendall(b"x")

    def endless(self, connection: socket.socket) -> None:
        """Answer 200 with a body that never ends."""
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not self._closing.is_set():
            connection.sendall(b"x" * 65536)

    def short(self, connection: socket.socket) -> None:
        """Answer 200 with less than was announced."""
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort")

    def nonsense(self, connection: socket.socket) -> None:
        """Answer something that is not HTTP."""
        connection.sendall(b"\x00\xff not http at all\r\n\r\n")

    def json(self, index: int = 0) -> Any:
        """Return a request's body, parsed."""
        return json.loads(self.received[index].body)
