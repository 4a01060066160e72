"""One fixed request whose answer tells whether a woken engine still computes what it did. Pure: no Django.

Weights that were moved out of a GPU and back have come back wrong without any error (vllm-project/vllm #29341), and
what follows is text that only a reader would doubt.
"""

import math
from collections.abc import Collection
from typing import Any

import msgspec

_TEXT = "Count from one to ten, then name the days of the week."
_TOKENS = 24
_BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": _TEXT}],
        "max_tokens": _TOKENS,
        "temperature": 0,
        "seed": 0,
    },
    "/v1/completions": {"prompt": _TEXT, "max_tokens": _TOKENS, "temperature": 0, "seed": 0},
    "/v1/embeddings": {"input": _TEXT},
    "/v1/score": {"text_1": _TEXT, "text_2": "Numbers and weekdays."},
    "/v1/rerank": {"query": _TEXT, "documents": ["Numbers and weekdays.", "A loaf of bread."]},
}
# What differs from answer to answer of a sound engine.
_OF_THE_MOMENT = frozenset({"id", "created", "created_at", "usage", "system_fingerprint", "service_tier"})
_TOLERANCE = 1e-2  # of a float: kernels may sum in another order after a wake-up


def request(endpoints: Collection[str], model: str) -> tuple[str, bytes] | None:
    """Return the path and the body to send, None when there is none for what the model answers."""
    for path, body in _BODIES.items():
        if path in endpoints:
            return path, msgspec.json.encode({"model": model, **body})
    return None


def same(first: bytes, second: bytes) -> bool:
    """Return whether two answers say the same."""
    try:
        return _same(msgspec.json.decode(first), msgspec.json.decode(second))
    except msgspec.MsgspecError:
        return False


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, dict) and isinstance(second, dict):
        names = (first.keys() | second.keys()) - _OF_THE_MOMENT
        return all(_same(first.get(name), second.get(name)) for name in names)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, float) or isinstance(second, float):
        numbers = isinstance(first, (int, float)) and isinstance(second, (int, float))
        return numbers and math.isclose(first, second, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(first == second)
