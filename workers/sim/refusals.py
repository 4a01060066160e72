"""Refuse a request in the words and the envelope of vLLM."""

from __future__ import annotations

import re
from http import HTTPStatus

import msgspec

_MISSING_FIELD = re.compile(r"missing required field `([^`]+)`")
_PATH = re.compile(r" - at `\$([^`]*)`$")


def envelope(status: int, message: str, *, kind: str, param: str | None = None) -> bytes:
    """Write an error body as vLLM does."""
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": status}})


class RefusalError(Exception):
    """The request is answered with an error."""

    def __init__(self, status: int, message: str, *, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = envelope(status, message, kind=kind, param=param)


def bad_value(message: str, *, param: str, value: object) -> RefusalError:
    """Return the refusal of a value that vLLM checks itself."""
    return RefusalError(400, f"{message} (parameter={param}, value={value})", kind="BadRequestError", param=param)


def bad_request(message: str, *, param: str | None = None) -> RefusalError:
    """Return the refusal of a request that makes no sense as a whole."""
    return RefusalError(400, message, kind="BadRequestError", param=param)


def bad_body(error: msgspec.DecodeError) -> RefusalError:
    """Return the refusal of a body that has the wrong shape, as vLLM's validation words it."""
    detail = str(error)
    place = _PATH.search(detail)
    param = "body" + (place[1].replace("[", ".").replace("]", "") if place else "")
    if missing := _MISSING_FIELD.search(detail):
        param += f".{missing[1]}"
    message = f"1 validation error:\n  {{'loc': {param!r}, 'msg': {detail!r}}}"
    return RefusalError(400, message, kind=HTTPStatus.BAD_REQUEST.phrase, param=param)


def plain(status: HTTPStatus) -> RefusalError:
    """Return the refusal that FastAPI gives by itself, such as 404 of an unknown route."""
    return RefusalError(status.value, status.phrase, kind=status.phrase)
