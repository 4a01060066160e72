"""What is read of a live request's body."""

import msgspec

from vbatch_site.openai.errors import ApiError, missing, wrong_type


class _Head(msgspec.Struct):
    model: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def model_of(body: bytes) -> str:
    """Return the model that a JSON body names; raise ApiError when there is none or the body is no JSON object."""
    try:
        head = msgspec.json.decode(body.strip() or b"{}", type=_Head)
    except msgspec.ValidationError:
        raise ApiError("The JSON body of your request must be an object.", code="invalid_type") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise ApiError("We could not parse the JSON body of your request.", code="invalid_json") from None
    if isinstance(head.model, msgspec.UnsetType):
        raise missing("model")
    try:
        model = msgspec.json.decode(head.model)
    except (msgspec.MsgspecError, RecursionError):
        # A number that no type holds, or what has no bottom: no name in any case.
        model = 0
    if not isinstance(model, str):
        raise wrong_type("model", "a string", model)
    return model
