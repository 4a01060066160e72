"""The error envelope: every refusal, from a wrong field to an internal fault, leaves through this file."""

import errno
import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from django.core.exceptions import RequestDataTooBig, SuspiciousOperation, TooManyFieldsSent, TooManyFilesSent
from django.db import DatabaseError
from django.http import Http404, HttpRequest, JsonResponse, UnreadablePostError
from rest_framework import exceptions, status
from rest_framework.response import Response

from vbatch_site.openai import wording

logger = logging.getLogger(__name__)

INVALID_REQUEST = "invalid_request_error"

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}

Json = dict[str, Any]


def envelope(message: str, kind: str = INVALID_REQUEST, param: str | None = None, code: str | None = None) -> Json:
    """Return OpenAI's error body; all four keys are always there (contract.md 7.1)."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class ApiError(exceptions.APIException):
    """A refusal that a client sees as it is."""

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID_REQUEST,
        http_status: int = status.HTTP_400_BAD_REQUEST,
        headers: dict[str, str] | None = None,
        siblings: Json | None = None,
    ) -> None:
        self.status_code = http_status
        self.headers = headers or {}
        self.body = envelope(message, kind, param, code) | (siblings or {})
        super().__init__(message)


def missing(param: str) -> ApiError:
    """Return the refusal of a request without a required field."""
    return ApiError(wording.missing(param), param=param, code="missing_required_parameter")


def wrong_type(param: str, expected: str, value: object) -> ApiError:
    """Return the refusal of a field of a wrong type."""
    return ApiError(wording.wrong_type(param, expected, value), param=param, code="invalid_type")


def not_supported(param: str, value: object, choices: Sequence[str]) -> ApiError:
    """Return the refusal of a value outside a closed list."""
    return ApiError(wording.one_of(value, choices), param=param, code="invalid_value")


def wrong_id(param: str, value: object, prefix: str) -> ApiError:
    """Return the refusal of an id that can't be one of its kind."""
    message = f"Invalid '{param}': '{value}'. Expected an ID that begins with '{prefix}'."
    return ApiError(message, param=param, code="invalid_value")


def check_bounds(param: str, value: int, minimum: int, maximum: int) -> None:
    """Refuse an integer outside its bounds."""
    if value > maximum:
        message = f"integer above maximum value. Expected a value <= {maximum}, but got {value} instead."
        raise ApiError(f"Invalid '{param}': {message}", param=param, code="integer_above_max_value")
    if value < minimum:
        message = f"integer below minimum value. Expected a value >= {minimum}, but got {value} instead."
        raise ApiError(f"Invalid '{param}': {message}", param=param, code="integer_below_min_value")


def plain_refusal(request: HttpRequest, code: int) -> JsonResponse:
    """Answer what Django refused before or without a view, such as a path that no route has."""
    if code == status.HTTP_404_NOT_FOUND:
        message = f"Invalid URL ({request.method} {request.path})"
    else:
        message = HTTPStatus(code).phrase + "."
    return JsonResponse(envelope(message, INVALID_REQUEST if code < 500 else "server_error"), status=code)


def internal_fault(request: HttpRequest, error: BaseException | None = None) -> JsonResponse:
    """Answer a fault of ours; its cause goes to the log, under the request's id, and nowhere else."""
    request_id = getattr(request, "request_id", "")
    extra = {"action": "request_failed", "request_id": request_id}
    # In the text too: it is what a client quotes, and what somebody will search the log for.
    logger.error("request %s failed", request_id, extra=extra, exc_info=error)
    if isinstance(error, DatabaseError):
        body = envelope("The server can't reach its database. Please retry.", "server_error", code="database_error")
        return JsonResponse(body, status=status.HTTP_503_SERVICE_UNAVAILABLE, headers={"retry-after": "2"})
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        body = envelope(f"The server can't store the request: {error.strerror}.", "server_error", code="storage_error")
        return JsonResponse(body, status=status.HTTP_507_INSUFFICIENT_STORAGE)
    message = f"The server had an error while processing your request. Please quote request ID {request_id}."
    return JsonResponse(envelope(message, "server_error"), status=status.HTTP_500_INTERNAL_SERVER_ERROR)


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response | None:
    """Turn what a view raises into the envelope; DRF calls it."""
    headers: dict[str, str] = {}
    match exc:
        case ApiError():
            headers = exc.headers
            body, code = exc.body, exc.status_code
        case exceptions.MethodNotAllowed():
            request = context["request"]
            message = f"Not allowed to {request.method} on {request.path}."
            body, code = envelope(message, code="method_not_supported"), 405
            headers["allow"] = ", ".join(context["view"].allowed_methods)
        case exceptions.UnsupportedMediaType():
            kind = context["request"].content_type or "none"
            body = envelope(f"Unsupported content type: '{kind}'.", code="unsupported_content_type")
            code = 415
        case RequestDataTooBig():
            body, code = envelope("The request body is too large.", code="request_too_large"), 413
        case UnreadablePostError():
            body, code = envelope("The rest of the request's body did not come.", code="request_timeout"), 408
        case TooManyFieldsSent() | TooManyFilesSent() | SuspiciousOperation():
            body, code = envelope("The multipart body has too many parts or a part that can't be read."), 400
        case Http404() | exceptions.NotFound():
            body, code = envelope("Not found."), 404
        case exceptions.APIException():
            body, code = envelope(str(exc.detail)), exc.status_code
        case _:
            return None
    return Response(body, status=code, headers=headers)
