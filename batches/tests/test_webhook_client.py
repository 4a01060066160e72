"""One attempt at receivers that are slow, broken or hostile, over real sockets; only name resolution is made up."""

import asyncio
import datetime
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ThreadedResolver
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from batches.webhooks.client import KEPT_BYTES, Answer, Client
from vbatch_site.tests.receiver import Receiver, status

TIMEOUT = 1.0  # seconds, for receivers that don't answer
PATIENCE = 60.0  # seconds, for those that do, on a busy machine
ENOUGH = 20.0  # seconds: the time-out, and those that reading a body may take

Names = dict[str, list[list[str]]]


def _post(url: str, timeout: float = PATIENCE, *, allow_private: bool = True) -> Answer:
    async def send() -> Answer:
        async with Client(timeout, allow_private=allow_private) as client:
            return await client.post(url, b"{}", {"content-type": "application/json"})

    return asyncio.run(send())


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    """Names and their answers, look-up by look-up; the last answer repeats."""
    answers: Names = {}
    real = socket.getaddrinfo
    asked: dict[str, int] = {}

    def fake(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host not in answers:
            return real(host, port, *args, **more)
        turn = min(asked.get(host, 0), len(answers[host]) - 1)
        asked[host] = asked.get(host, 0) + 1
        return [
            (socket.AF_INET6 if ":" in to else socket.AF_INET, socket.SOCK_STREAM, 6, "", (to, port))
            for to in answers[host][turn]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", fake)
    yield answers


@pytest.mark.parametrize("way", ["hang", "drip", "reset", "nonsense"])
def test_a_receiver_that_does_not_answer_is_a_failure_in_time(way: str) -> None:
    with Receiver() as receiver:
        receiver.behaviours = [getattr(receiver, way)]
        started = time.monotonic()
        answer = _post(receiver.url, TIMEOUT if way in ("hang", "drip") else PATIENCE)
        assert time.monotonic() - started < ENOUGH
        assert (answer.succeeded, answer.status) == (False, 0)
        assert answer.error
        assert ("no answer" in answer.error) == (way in ("hang", "drip"))


@pytest.mark.parametrize("way", ["endless", "short"])
def test_a_status_counts_whatever_the_body_does(way: str) -> None:
    with Receiver() as receiver:
        receiver.behaviours = [getattr(receiver, way)]
        started = time.monotonic()
        answer = _post(receiver.url)
        assert time.monotonic() - started < ENOUGH
        assert (answer.succeeded, answer.status) == (True, 200)
        assert len(answer.body) <= KEPT_BYTES


def test_only_the_start_of_an_answer_is_kept() -> None:
    with Receiver(status(500, body=b"fault " * 10_000)) as receiver:
        answer = _post(receiver.url)
        assert answer.body == (b"fault " * 10_000)[:KEPT_BYTES]
        assert (answer.succeeded, answer.error) == (False, "status 500")


def test_a_compressed_answer_is_not_unpacked() -> None:
    with Receiver(status(200, "Content-Encoding: gzip", body=b"not gzip")) as receiver:
        assert _post(receiver.url).body == b"not gzip"


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_item_100_a_redirect_is_a_failure_and_not_followed(code: int) -> None:
    with Receiver() as elsewhere, Receiver(status(code, f"Location: {elsewhere.url}")) as receiver:
        answer = _post(receiver.url)
        assert (answer.succeeded, answer.status) == (False, code)
        assert not elsewhere.connections


def test_an_unreachable_port_is_a_failure() -> None:
    with Receiver() as receiver:
        url = receiver.url
    answer = _post(url)
    assert (answer.status, answer.succeeded) == (0, False)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "[::ffff:127.0.0.1]"])
def test_private_targets_are_refused_before_a_connection(host: str) -> None:
    with Receiver() as receiver:
        answer = _post(f"http://{host}:{receiver.port}/", allow_private=False)
        assert (answer.status, answer.succeeded) == (0, False)
        assert answer.error
        assert not receiver.connections


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::ffff:7f00:1", "64:ff9b::7f00:1"])
def test_names_of_private_addresses_are_refused(names: Names, address: str) -> None:
    names["internal.example"] = [[address]]
    with Receiver() as receiver:
        answer = _post(f"http://internal.example:{receiver.port}/", allow_private=False)
        assert answer.error == "the address is not on the open internet"
        assert not receiver.connections


def test_of_a_names_addresses_only_the_allowed_are_used(names: Names) -> None:
    # Link-local is refused in any mode; the address behind it is used.
    names["mixed.example"] = [["169.254.169.254", "127.0.0.1"]]
    with Receiver() as receiver:
        assert _post(f"http://mixed.example:{receiver.port}/").status == 200
        assert [request.address for request in receiver.received] == ["127.0.0.1"]


def test_a_name_that_changes_after_the_check_is_not_followed(names: Names) -> None:
    # The first look-up is harmless, each later one points elsewhere.
    names["rebind.example"] = [["127.0.0.2"], ["169.254.169.254"], ["127.0.0.1"]]
    with Receiver(host="127.0.0.2") as checked, Receiver() as inner:
        assert _post(f"http://rebind.example:{checked.port}/").status == 200
        assert [request.address for request in checked.received] == ["127.0.0.2"]
        assert checked.received[0].headers["host"] == f"rebind.example:{checked.port}"
        # And the other way round: what the first answer refuses, a second one does not let in.
        names["turned.example"] = [["10.0.0.1"], ["127.0.0.1"]]
        assert _post(f"http://turned.example:{inner.port}/", allow_private=False).status == 0
        assert not inner.connections


def test_a_connection_is_refused_even_if_the_resolver_lets_an_address_through(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The check at the socket stands alone, should a later version of the client library not ask our resolver.
    from batches.webhooks import client

    monkeypatch.setattr(client, "_Resolver", lambda allow_private: ThreadedResolver())
    names["internal.example"] = [["127.0.0.1"]]
    with Receiver() as receiver:
        answer = _post(f"http://internal.example:{receiver.port}/", allow_private=False)
        assert "not on the open internet" in answer.error
        assert not receiver.connections


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as proxy, Receiver() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert _post(receiver.url).status == 200
        assert not proxy.connections


def _certificate(folder: Path, name: str) -> tuple[Path, ssl.SSLContext]:
    """Return a certificate that signs itself, and a server's context with it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "receiver.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return path, context


def test_tls_is_made_with_the_name_and_not_with_the_address(
    names: Names, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, context = _certificate(tmp_path, "hooks.example")
    seen: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: seen.append(name)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    names["hooks.example"] = names["other.example"] = [["127.0.0.1"]]
    with Receiver(tls=context) as receiver:
        assert _post(f"https://hooks.example:{receiver.port}/").status == 200
        assert seen == ["hooks.example"]
        assert receiver.received[0].headers["host"] == f"hooks.example:{receiver.port}"
        refused = _post(f"https://other.example:{receiver.port}/")
        assert (refused.status, len(receiver.received)) == (0, 1)
        monkeypatch.delenv("SSL_CERT_FILE")
        assert _post(f"https://hooks.example:{receiver.port}/").status == 0
