"""Headers that every answer has (contract.md 7.6)."""

import secrets


def request_id() -> str:
    """Return a new request id."""
    return "req_" + secrets.token_hex(16)


def answer_headers(request_id: str, milliseconds: int) -> dict[str, str]:
    """Return the headers of one answer."""
    return {
        "x-request-id": request_id,
        "openai-version": "2020-10-01",
        "openai-processing-ms": str(milliseconds),
    }
