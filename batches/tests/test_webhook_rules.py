"""The rules of webhooks that need no network and no database."""

import hashlib
import hmac
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings

from batches.webhooks import signing
from batches.webhooks.addresses import is_address, is_allowed
from batches.webhooks.payload import step_reached
from batches.webhooks.retries import GIVE_UP_AFTER, LONGEST_WAIT, next_attempt

PUBLIC = ["1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]
PRIVATE = ["127.0.0.1", "127.1.2.3", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd00::1"]
NEVER = [
    "0.0.0.0",  # noqa: S104 (no address to listen on)
    "169.254.169.254",
    "192.0.0.1",
    "198.18.0.1",
    "203.0.113.1",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "fe80::1",
    "fe80::1%1",
    "ff02::1",
    "fec0::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "localhost",
    "",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(address, allow_private=False)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_allowed_only_by_the_setting(address: str) -> None:
    assert not is_allowed(address, allow_private=False)
    assert is_allowed(address, allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_link_local_multicast_reserved_and_embedding_addresses_are_never_allowed(address: str) -> None:
    assert not is_allowed(address, allow_private=False)
    assert not is_allowed(address, allow_private=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f000001", "127.1", "0177.0.0.1", "1.1", "::1", "1."])
def test_every_way_to_write_an_address_is_seen(host: str) -> None:
    assert is_address(host)
    assert not is_address("example.com")


def test_waits_double_with_jitter_up_to_the_longest() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    end = now + GIVE_UP_AFTER
    for tries in range(1, 40):
        nominal = min(5 * 2.0 ** (tries - 1), LONGEST_WAIT.total_seconds())
        waits = [(at - now).total_seconds() for _ in range(50) if (at := next_attempt(now, tries, 5, end))]
        assert all(0.8 * nominal <= wait <= 1.2 * nominal for wait in waits)
        assert len({round(wait, 3) for wait in waits}) > 10


def test_item_100_retries_fill_72_hours_and_stop() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for _ in range(200):
        times = [start]
        while at := next_attempt(times[-1], len(times), 5, start + GIVE_UP_AFTER):
            times.append(at)
        assert times[-1] == start + timedelta(hours=72)
        assert 15 <= len(times) <= settings.VBATCH_WEBHOOK_MAX_ATTEMPTS
        assert (times[5] - start).total_seconds() < 300


def test_attempts_are_enough_for_72_hours_of_the_shortest_waits() -> None:
    waits = range(settings.VBATCH_WEBHOOK_MAX_ATTEMPTS - 1)
    shortest = [0.8 * min(5 * 2.0**tries, LONGEST_WAIT.total_seconds()) for tries in waits]
    assert sum(shortest) >= GIVE_UP_AFTER.total_seconds()


@pytest.mark.parametrize(
    ("before", "after", "total", "step"),
    [
        (0, 1, 4, 25),
        (1, 2, 4, 50),
        (1, 3, 4, 75),
        (0, 2, 4, 50),
        (2, 2, 4, None),
        (0, 4, 4, None),
        (3, 4, 4, None),
        (0, 0, 0, None),
        (24, 25, 100, 25),
        (25, 49, 100, None),
        (10, 24, 100, None),
    ],
)
def test_a_step_is_announced_once_and_the_end_is_no_step(before: int, after: int, total: int, step: int | None) -> None:
    assert step_reached(before, after, total) == step


def test_signatures_are_those_of_both_dialects() -> None:
    secret = "whsec_" + b64encode(b"0123456789abcdef0123456789abcdef").decode()
    headers = signing.headers("wh_1", 1_700_000_000, b'{"a": 1}', [secret, "plain"])
    text = b'wh_1.1700000000.{"a": 1}'
    made = [hmac.new(key, text, hashlib.sha256).digest() for key in (b64decode(secret[6:]), b"plain")]
    assert headers["webhook-signature"] == " ".join("v1," + b64encode(digest).decode() for digest in made)
    assert headers["X-Webhook-Signature"] == hmac.new(secret.encode(), b'{"a": 1}', hashlib.sha256).hexdigest()


def test_without_a_secret_nothing_is_signed() -> None:
    assert not {"webhook-signature", "X-Webhook-Signature"} & set(signing.headers("wh_1", 1, b"", []))


def test_a_new_secret_is_long_and_random() -> None:
    made = {signing.new_secret() for _ in range(100)}
    assert len(made) == 100
    assert all(len(signing.key_of(secret)) == 32 for secret in made)
