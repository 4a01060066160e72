"""What is looked at in a request's body; the rest is the engine's business. Pure: no Django."""

from hashlib import blake2b
from typing import Any

import msgspec

# Endpoints whose answer has no chance in it.
_WITHOUT_SAMPLING = frozenset({"/v1/embeddings", "/v1/score", "/v1/rerank"})

_Text = msgspec.Raw | msgspec.UnsetType


class Body(msgspec.Struct):
    """The fields that validation and planning read; texts stay the bytes that the user wrote."""

    model: str | None | msgspec.UnsetType = msgspec.UNSET
    stream: Any = msgspec.UNSET
    messages: _Text = msgspec.UNSET
    prompt: _Text = msgspec.UNSET
    input: _Text = msgspec.UNSET
    query: _Text = msgspec.UNSET
    documents: _Text = msgspec.UNSET
    instructions: _Text = msgspec.UNSET
    tools: _Text = msgspec.UNSET
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    temperature: Any = None
    seed: Any = None
    n: Any = None

    def prompt_bytes(self) -> bytes:
        """Return the texts that the engine reads, in the order in which chat templates put them."""
        parts = (self.tools, self.instructions, self.messages, self.prompt, self.input, self.query, self.documents)
        return b"".join(bytes(part) for part in parts if isinstance(part, msgspec.Raw))

    def most_tokens(self) -> int:
        """Return how many tokens the answer may have, 0 where the request does not say."""
        for value in (self.max_completion_tokens, self.max_tokens, self.max_output_tokens):
            if isinstance(value, int) and value > 0:
                return value
        return 0

    def is_deterministic(self, endpoint: str) -> bool:
        """Return whether equal requests get equal answers: no sampling, or a seed for it."""
        if endpoint in _WITHOUT_SAMPLING:
            return True
        return self.n in (None, 1) and (self.temperature == 0 or isinstance(self.seed, int))


_decoder = msgspec.json.Decoder(Body)
_object = msgspec.json.Decoder(dict[str, Any])


def read_body(raw: msgspec.Raw) -> Body:
    """Return what is looked at in a body; raise msgspec.MsgspecError or RecursionError."""
    return _decoder.decode(raw)


def answer_digest(raw: msgspec.Raw) -> bytes:
    """Return a digest of a body that does not depend on the order of its keys or on white space."""
    return blake2b(plain(raw), digest_size=16).digest()


def plain(raw: msgspec.Raw, **fields: str) -> bytes:
    """Return a body, some of its fields replaced, in the one form that all its spellings have."""
    try:
        return msgspec.json.encode({**_object.decode(raw), **fields}, order="sorted")
    except (msgspec.MsgspecError, RecursionError):
        # JSON allows numbers that no type of ours holds, such as 1e400; what they mean is the engine's business.
        return msgspec.json.encode([raw, fields])
