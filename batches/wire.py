"""Lines of output and error files, as contract.md 4.1 has them. Pure: no Django.

The engine's answer goes in as the bytes it sent: it is never parsed and written again. Only the three characters that
many readers take for the end of a line are escaped in it.
"""

import msgspec

EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED = ("batch_cancelled", "This request was cancelled before it was executed.")

_encode = msgspec.json.encode


class Usage(msgspec.Struct):
    """Tokens of one answer, whichever names the endpoint gives them."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0


_MOST_TOKENS = 2**31 - 1  # that a row can hold; what says more, or less than none, is no count


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0
    reasoning_tokens: int | None = 0


class _EngineUsage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _EngineUsage | None = None
    error: msgspec.Raw | None = None
    object: str | None = None


# A stopping vLLM ends running requests with this; unescaped quotes can't be part of a generated text.
_ABORTED = b'"finish_reason":"abort"'

_answer_decoder = msgspec.json.Decoder(_Answer)


class NotAnAnswer(ValueError):
    """The engine said 200 and sent something that is not an answer."""


def read_usage(body: bytes) -> Usage:
    """Return the tokens that an answer reports.

    Raises NotAnAnswer when it is no JSON object, carries an error, or is not UTF-8.
    """
    try:
        answer = _answer_decoder.decode(body)
        if not body.isascii():
            # Strings that are not asked for are not looked at, and one bad byte spoils the whole file for readers.
            body.decode()
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise NotAnAnswer(str(error)) from None
    # The responses endpoint has `"error": null` in a good answer; older engines call an error an object.
    if (answer.error is not None and bytes(answer.error) != b"null") or answer.object == "error":
        raise NotAnAnswer("an error with status 200")
    if _ABORTED in body:
        raise NotAnAnswer("aborted by the engine")
    usage = answer.usage
    if usage is None:
        return Usage()
    before = usage.prompt_tokens_details or usage.input_tokens_details or _Details()
    after = usage.completion_tokens_details or usage.output_tokens_details or _Details()
    return Usage(
        input_tokens=_count(usage.prompt_tokens or usage.input_tokens),
        cached_tokens=_count(before.cached_tokens),
        output_tokens=_count(usage.completion_tokens or usage.output_tokens),
        reasoning_tokens=_count(after.reasoning_tokens),
    )


def _count(said: int | None) -> int:
    return said if said is not None and 0 <= said <= _MOST_TOKENS else 0


def one_line(body: bytes) -> bytes:
    """Return a JSON body without line breaks; what already is one line stays as it is."""
    return body if b"\n" not in body and b"\r" not in body else msgspec.json.format(body, indent=-1)


# U+0085, U+2028 and U+2029 in UTF-8. JSON lets them stand in strings, and nowhere else, as they are; but there
# str.splitlines() ends a line, and so do the iter_lines() of the official SDK and of the HTTP library below it.
_LINE_ENDS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))


def _whole(line: bytes) -> bytes:
    """Return a line without what some readers would break it at."""
    for character, escaped in _LINE_ENDS:
        if character in line:
            line = line.replace(character, escaped)
    return line


def _head(line_id: str, custom_id: str | None) -> bytes:
    return b'{"id":"' + line_id.encode() + b'","custom_id":' + _encode(custom_id)


def response_line(line_id: str, custom_id: str | None, status_code: int, request_id: str, body: bytes) -> bytes:
    """Return the line of a request that the engine answered, with whatever status."""
    line = b"%b,%b%d,%b%b,%b%b%b" % (
        _head(line_id, custom_id),
        b'"response":{"status_code":',
        status_code,
        b'"request_id":',
        _encode(request_id),
        b'"body":',
        body,
        b'},"error":null}\n',
    )
    return _whole(line)


def error_line(line_id: str, custom_id: str | None, code: str, message: str, line: int | None = None) -> bytes:
    """Return the line of a request that got no answer; a bad line names its number, because its id may be none."""
    error = _encode({"code": code, "message": message, **({} if line is None else {"line": line})})
    return _whole(b'%b,"response":null,"error":%b}\n' % (_head(line_id, custom_id), error))
