"""Secrets and signatures of both dialects: Standard Webhooks, and the older local server's. Pure: no Django."""

import hashlib
import hmac
import secrets
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence

PREFIX = "whsec_"
_KEY_BYTES = 32  # Standard Webhooks asks for 24 to 64


def new_secret() -> str:
    """Return a new secret, as its owner sees it."""
    return PREFIX + b64encode(secrets.token_bytes(_KEY_BYTES)).decode()


def hint(secret: str) -> str:
    """Return what may be shown of a secret."""
    return f"{PREFIX}...{secret[-4:]}"


def key_of(secret: str) -> bytes:
    """Return the key of a secret; raise ValueError when it has the prefix and no base64 behind it."""
    if not secret.startswith(PREFIX):
        return secret.encode()
    try:
        key = b64decode(secret.removeprefix(PREFIX), validate=True)
    except Base64Error as error:
        raise ValueError(str(error)) from None
    if not key:
        raise ValueError("an empty key")
    return key


def headers(message_id: str, timestamp: int, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """Return the headers of one attempt; `keys` are the secrets that are valid now, the newest first, none to not sign.

    The older dialect has room for one signature: it is made with the newest secret, the prefix being part of the key.
    """
    found = {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "X-Webhook-Timestamp": str(timestamp),
    }
    if keys:
        text = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
        signatures = [b64encode(hmac.digest(key_of(secret), text, hashlib.sha256)).decode() for secret in keys]
        found["webhook-signature"] = " ".join(f"v1,{signature}" for signature in signatures)
        found["X-Webhook-Signature"] = hmac.new(keys[0].encode(), body, hashlib.sha256).hexdigest()
    return found
