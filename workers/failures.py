"""Why a request got no answer: a closed set. Pure: no Django."""

from enum import Enum


class Failure(Enum):
    """What went wrong with one attempt: the code on the wire, its sentence, and whether another attempt may help."""

    ENGINE_LOST = ("engine_crashed", "The engine died while it ran this request.", True)
    CONNECTION_LOST = ("connection_lost", "The connection to the engine was lost.", True)
    TIMEOUT = ("request_timeout", "The engine did not answer in time.", True)
    SERVER_FAULT = ("server_error", "The engine answered with a server fault.", True)
    OVERLOADED = ("rate_limit_exceeded", "The engine refused the request for lack of room.", True)
    NOT_AN_ANSWER = ("invalid_answer", "The engine's answer could not be read.", True)
    REFUSED = ("invalid_request", "The engine refused the request.", False)
    LINE_UNREADABLE = ("line_unreadable", "The line could not be read again from the input file.", False)

    def __init__(self, code: str, message: str, is_retriable: bool) -> None:
        self.code = code
        self.message = message
        self.is_retriable = is_retriable


def of_status(status: int) -> Failure | None:
    """Return what an HTTP status means, None for an answer."""
    if status == 200:
        return None
    if status == 429:
        return Failure.OVERLOADED
    if status == 408:
        return Failure.TIMEOUT
    return Failure.SERVER_FAULT if status >= 500 else Failure.REFUSED
