"""OpenAI's sentences that more than one room needs (contract.md 7.2). Pure: no Django."""

from collections.abc import Sequence

_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
}


def wrong_type(param: str, expected: str, value: object) -> str:
    """Return the sentence on a field of a wrong type."""
    got = _TYPE_NAMES.get(type(value), "an object")
    suffix = "" if value is None else " instead"
    return f"Invalid type for '{param}': expected {expected}, but got {got}{suffix}."


def missing(name: str) -> str:
    """Return the sentence on a required field that is not there."""
    return f"Missing required parameter: '{name}'."


def one_of(value: object, choices: Sequence[str]) -> str:
    """Return the sentence on a value outside a closed list, which is named in full."""
    quoted = [f"'{choice}'" for choice in choices]
    listed = " and ".join(quoted) if len(quoted) < 3 else f"{', '.join(quoted[:-1])}, and {quoted[-1]}"
    return f"Invalid value: '{value}'. Supported values are: {listed}."
