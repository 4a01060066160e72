"""Mint and check the identifiers that OpenAI's API uses."""

import os
import secrets
from hashlib import blake2b

_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def file_id() -> str:
    """Return `file-` and 22 base58 characters, as contract.md 1.2 observed them."""
    return "file-" + "".join(secrets.choice(_BASE58) for _ in range(22))


def timed_id(prefix: str, at: int) -> str:
    """Return the prefix and 32 hex digits: a version-8 UUID whose first eight digits are the unix time `at`."""
    return _timed(prefix, at, os.urandom(10))


def derived_id(prefix: str, at: int, origin: bytes) -> str:
    """Return an id of the same form that is always the same for the same origin."""
    return _timed(prefix, at, blake2b(origin, digest_size=10).digest())


def _timed(prefix: str, at: int, ten_bytes: bytes) -> str:
    # Digits 13 to 16 and the variant are as observed on genuine ids (contract.md 4.4).
    tail = ten_bytes.hex()
    variant = "89ab"[int(tail[4], 16) & 3]
    return f"{prefix}_{at:08x}{tail[:4]}8190{variant}{tail[5:20]}"
