"""Keys that make a request safe to repeat: the same key and request answer with the object that the first one made."""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from django.core.files.uploadhandler import TemporaryFileUploadHandler
from django.utils import timezone

from vbatch_site.models import IdempotencyKey, Project
from vbatch_site.openai.auth import ApiRequest
from vbatch_site.openai.errors import ApiError

HEADER = "Idempotency-Key"
KEY_LIFE = timedelta(hours=24)
MAX_KEY = 255  # characters

_SWEPT_AT_ONCE = 10_000  # rows


@dataclass(frozen=True, slots=True)
class Claim:
    """One request's claim on its key."""

    project: Project
    key: str
    fingerprint: str

    def holder(self) -> str | None:
        """Return the id of the object that the key stands for, None while there is none; raise the 409."""
        return self._checked(self._live().first())

    def hold(self, object_id: str) -> str:
        """Let the key stand for a new object, and return its id; the id of an earlier one if there is; raise the 409.

        Call inside the transaction that makes the object: a request at the same time waits here until that commits.
        """
        fields = {"fingerprint": self.fingerprint, "object_id": object_id, "created_at": timezone.now()}
        self._rows().filter(created_at__lte=timezone.now() - KEY_LIFE).delete()
        row, _ = IdempotencyKey.objects.get_or_create(project=self.project, key=self.key, defaults=fields)
        return self._checked(row) or object_id

    def _rows(self) -> Any:
        return IdempotencyKey.objects.filter(project=self.project, key=self.key)

    def _live(self) -> Any:
        return self._rows().filter(created_at__gt=timezone.now() - KEY_LIFE)

    def _checked(self, row: IdempotencyKey | None) -> str | None:
        if row is None:
            return None
        if row.fingerprint != self.fingerprint:
            raise ApiError(
                f"The {HEADER} '{self.key}' was used before, with another request.",
                code="idempotency_key_reused",
                http_status=409,
                # Both SDKs repeat a 409 twice before they raise; nothing would change.
                headers={"x-should-retry": "false"},
            )
        return row.object_id


def claim(request: ApiRequest, *parts: Any) -> Claim | None:
    """Return the request's claim, None without the header; `parts` is all that makes two requests the same."""
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not 0 < len(key) <= MAX_KEY or not key.isascii() or not key.isprintable():
        message = f"Invalid '{HEADER}': expected 1 to {MAX_KEY} printable ASCII characters."
        raise ApiError(message, param=HEADER, code="invalid_value")
    material = msgspec.json.encode([request.path, *parts], order="deterministic")
    return Claim(request.user, key, hashlib.sha256(material).hexdigest())


def sweep(now: datetime) -> None:
    """Forget keys that are too old to count."""
    old = IdempotencyKey.objects.filter(created_at__lte=now - KEY_LIFE)
    IdempotencyKey.objects.filter(pk__in=old.values("pk")[:_SWEPT_AT_ONCE]).delete()


class DigestingUploadHandler(TemporaryFileUploadHandler):
    """Write an upload to disk, and digest it on the way when the request has a key to compare it under."""

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        """Start a file."""
        super().new_file(*args, **kwargs)
        wanted = self.request is not None and HEADER in self.request.headers
        self._digest = hashlib.sha256() if wanted else None

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        """Take the next bytes."""
        super().receive_data_chunk(raw_data, start)
        if self._digest is not None:
            self._digest.update(raw_data)

    def file_complete(self, file_size: int) -> Any:
        """Return the file, with its digest as an attribute."""
        file: Any = super().file_complete(file_size)
        file.digest = self._digest.hexdigest() if self._digest is not None else ""
        return file
