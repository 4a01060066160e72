"""Read the bodies of requests: their shapes, as strict as vLLM's, and the texts in them.

Unknown fields are skipped: vLLM lets them pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from .refusals import bad_body, bad_request

TOKEN_CHARS = 4

Body = TypeVar("Body")


def count_tokens(text: str) -> int:
    """Return the number of tokens, four characters each."""
    return -(-len(text) // TOKEN_CHARS)


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = False


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct):
    role: str
    content: str | list[Part] | None = None


class Sampling(msgspec.Struct):
    """The fields that every generating request has."""

    model: str | None = None
    n: int | None = 1
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    priority: int = 0


class ChatBody(Sampling, kw_only=True):
    messages: list[Message]
    max_completion_tokens: int | None = None


class CompletionBody(Sampling, kw_only=True):
    prompt: str | list[str | int | list[int]]


class Item(msgspec.Struct):
    type: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None


class ResponsesBody(Sampling, kw_only=True):
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = None


class EmbeddingBody(msgspec.Struct, kw_only=True):
    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: str = "float"
    priority: int = 0


class ScoreBody(msgspec.Struct, kw_only=True):
    model: str | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    items: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    priority: int = 0


class RerankBody(msgspec.Struct, kw_only=True):
    query: str
    documents: str | list[str]
    model: str | None = None
    top_n: int = 0
    priority: int = 0


class TokenizeBody(msgspec.Struct, kw_only=True):
    prompt: str | None = None
    messages: list[Message] | None = None
    model: str | None = None
    return_token_strs: bool | None = False


def decoded(decode: Callable[[bytes], Body], raw: bytes) -> Body:
    """Decode a body or refuse it."""
    try:
        return decode(raw)
    except msgspec.DecodeError as error:
        raise bad_body(error) from None
    except UnicodeDecodeError as error:
        raise bad_body(msgspec.DecodeError(str(error))) from None


def text_of(content: str | list[Part] | None) -> str:
    """Return the text of a message, its parts one below the other."""
    if isinstance(content, str):
        return content
    return "\n".join(part.text for part in content or () if part.text)


def read_messages(messages: list[Message]) -> tuple[str, str]:
    """Return the last user text, or the last text where no user speaks, and the prompt as a whole."""
    texts = [text_of(message.content) for message in messages]
    user_text = texts[-1] if texts else ""
    for message, text in zip(reversed(messages), reversed(texts), strict=True):
        if message.role == "user":
            user_text = text
            break
    return user_text, "\n".join([f"{message.role}\n{text}" for message, text in zip(messages, texts, strict=True)])


def read_inputs(given: str | list[str | int | list[int]], field: str) -> tuple[list[str], int]:
    """Return the texts of a prompt in any of its four shapes, and their tokens together; ids stand for themselves."""
    if isinstance(given, str):
        return [given], count_tokens(given)
    if not given:
        raise bad_request(f"{field} must not be empty.", param=field)
    ids = [part for part in given if isinstance(part, int)]
    if ids and len(ids) < len(given):
        raise bad_request(f"{field} mixes token ids and texts.", param=field)
    texts = []
    tokens = 0
    for part in [ids] if ids else given:
        if isinstance(part, int):
            continue
        texts.append(part if isinstance(part, str) else " ".join(map(str, part)))
        tokens += count_tokens(part) if isinstance(part, str) else len(part)
    return texts, tokens
