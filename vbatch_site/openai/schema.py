"""The OpenAPI description: operations are described beside their views, objects by the types of their wire forms."""

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal, NotRequired, TypedDict, TypeVar

import msgspec
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.renderers import OpenApiJsonRenderer
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from drf_spectacular.views import SpectacularJSONAPIView
from msgspec import Meta

from vbatch_site.openai.errors import Json
from vbatch_site.openai.idempotency import HEADER, MAX_KEY
from vbatch_site.openai.parsers import JSONParser

F = TypeVar("F", bound=Callable[..., Any])

UnixTime = Annotated[int, Meta(description="Unix time in seconds.")]

# What any request with a key may meet, and what any request with a body may meet besides.
_ALWAYS = (401, 403, 429, 500, 503)
_WITH_BODY = (400, 408, 413, 415)

_REFERENCE = "#/components/schemas/"
_forms: dict[str, type] = {}


class ErrorDetailDict(TypedDict):
    """What was wrong."""

    message: str
    type: Literal["invalid_request_error", "requests", "server_error"]
    param: str | None
    code: str | None


class PlainErrorDict(TypedDict):
    """The repetition of a refused batch file."""

    message: str
    code: None


class ErrorDict(TypedDict):
    """The envelope of every error; `detail` is there only when a batch file is not JSONL."""

    error: ErrorDetailDict
    detail: NotRequired[PlainErrorDict]


class LifetimeDict(TypedDict):
    """How long a file stays, counted from its creation."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Meta(ge=3600, le=2_592_000)]


class PageDict(TypedDict):
    """One page of a list; `data` is added by each list."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


def _name(form: type) -> str:
    return form.__name__.removesuffix("Dict")


def of(form: type) -> Json:
    """Return a reference to the component that a typed dictionary makes."""
    _forms[form.__name__] = form
    return {"$ref": _REFERENCE + _name(form)}


def operation(
    name: str,
    *,
    tag: str,
    summary: str,
    answer: type | Mapping[tuple[int, str], Any],
    body: type | None = None,
    form: Json | None = None,
    path: str = "",
    query: Sequence[OpenApiParameter] = (),
    refuses: Sequence[int] = (),
    repeatable: bool = False,
) -> Callable[[F], F]:
    """Describe one operation: what it takes, what it answers, and every status that it refuses with."""
    takes_body = body is not None or form is not None
    codes = sorted({*_ALWAYS, *refuses, *(_WITH_BODY if takes_body else ()), *((404,) if path else ())})
    responses: dict[Any, Any] = {}
    if isinstance(answer, Mapping):
        responses |= answer
    else:
        responses[200] = OpenApiResponse(of(answer), "OK")
    responses |= {code: OpenApiResponse(of(ErrorDict), HTTPStatus(code).phrase) for code in codes}
    parameters = list(query)
    if path:
        parameters.append(OpenApiParameter(path, str, OpenApiParameter.PATH))
    if repeatable:
        parameters.append(_IDEMPOTENCY_KEY)
    request: Json | None = None
    if body is not None:
        request = {"application/json": of(body)}
    elif form is not None:
        request = {"multipart/form-data": form}
    described: Callable[[F], F] = extend_schema(
        operation_id=name,
        tags=[tag],
        summary=summary,
        parameters=[*parameters, _REQUEST_ID],
        request=request,
        responses=responses,
    )

    def describe(method: F) -> F:
        # The audit calls what a request did by the same name.
        found = described(method)
        found.operation = name  # type: ignore[attr-defined]
        return found

    return describe


def limit(default: int, maximum: int) -> OpenApiParameter:
    """Return the page size's parameter."""
    return OpenApiParameter("limit", {"type": "integer", "minimum": 1, "maximum": maximum, "default": default})


AFTER = OpenApiParameter("after", str, description="The id that the last page ended with.")
ORDER = OpenApiParameter("order", str, enum=["asc", "desc"], default="desc", description="By time of creation.")
_IDEMPOTENCY_KEY = OpenApiParameter(
    HEADER,
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY, "pattern": "^[ -~]+$"},
    OpenApiParameter.HEADER,
    description="The same key and request answer with the first object for 24 hours; another request is a 409.",
)
_REQUEST_ID = OpenApiParameter("x-request-id", str, OpenApiParameter.HEADER, response=True, description="Quote it.")


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[misc]
    """How keys are sent."""

    target_class = "vbatch_site.openai.auth.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> Json:
        """Return OpenAPI's security scheme."""
        return {"type": "http", "scheme": "bearer", "description": "An API key, as the admin issues them."}


def add_components(result: Json, generator: Any, request: Any, public: bool) -> Json:
    """Add the components that operations refer to; drf-spectacular calls it last."""
    _, found = msgspec.json.schema_components(_forms.values(), ref_template=_REFERENCE + "{name}")
    for operations in result["paths"].values():
        for described in operations.values():
            if "requestBody" in described:
                described["requestBody"]["required"] = True
    # The names of the types end in Dict, which tells a reader of the API nothing.
    text = json.dumps({name.removesuffix("Dict"): schema for name, schema in found.items()})
    for name in found:
        text = text.replace(f'"{_REFERENCE}{name}"', f'"{_REFERENCE}{name.removesuffix("Dict")}"')
    schemas: Json = json.loads(text)
    for name, schema in schemas.items():
        schema["title"] = name
    result.setdefault("components", {}).setdefault("schemas", {}).update(schemas)
    return result


class _JSON(OpenApiJsonRenderer):  # type: ignore[misc]
    media_type = "application/json"


class SchemaView(SpectacularJSONAPIView):  # type: ignore[misc]
    """The description itself, for programs."""

    renderer_classes = [_JSON]
    parser_classes = [JSONParser]
