"""Is a webhook genuine? Checked over the bytes as they came, by the newer signature, else by the older one.

The newer one (Standard Webhooks) covers the id and the time; servers that send only the older header are still heard.
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

TOLERANCE_SECONDS = 300  # either way: clocks differ, and networks are slow


class BadSignatureError(Exception):
    """The webhook was not signed with our secret, or long ago."""


def check(body: bytes, headers: Mapping[str, str], secret: str, now: float | None = None) -> str:
    """Return an id that repetitions of this webhook share; raise BadSignatureError. Header names are in lower case."""
    if not secret:
        raise BadSignatureError("There is no secret to check with.")
    when = headers.get("webhook-timestamp") or headers.get("x-webhook-timestamp") or ""
    if when and not _is_recent(when, time.time() if now is None else now):
        raise BadSignatureError("The webhook is too old, or from the future.")
    if "webhook-signature" in headers:
        webhook_id = headers.get("webhook-id", "")
        signed = f"{webhook_id}.{when}.".encode() + body
        wanted = base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()
        # While a secret is being rotated there are two.
        given = [part.removeprefix("v1,") for part in headers["webhook-signature"].split() if part.startswith("v1,")]
        if when and any(hmac.compare_digest(wanted.encode(), each.encode()) for each in given):
            return webhook_id
    elif "x-webhook-signature" in headers:
        wanted = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
        given_old = headers["x-webhook-signature"].removeprefix("sha256=")
        if hmac.compare_digest(wanted.encode(), given_old.encode()):
            return hashlib.sha256(body).hexdigest()
    raise BadSignatureError("The signature is missing or wrong.")


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix("whsec_")) if secret.startswith("whsec_") else secret.encode()


def _is_recent(when: str, now: float) -> bool:
    try:
        return abs(now - float(when)) <= TOLERANCE_SECONDS
    except ValueError:
        return False
