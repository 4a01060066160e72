"""How the Models API and the live routes are described."""

from collections.abc import Callable
from typing import Any, Literal, TypedDict, TypeVar

from drf_spectacular.utils import extend_schema_view

from vbatch_site.openai.schema import UnixTime, operation

V = TypeVar("V", bound=type)

MODELS = "Models"
LIVE = "Live requests"


class ModelDict(TypedDict):
    """OpenAI's model object, and as vLLM adds where the model comes from and its tokens of context, where known."""

    id: str
    object: Literal["model"]
    created: UnixTime
    owned_by: str
    shutdown_date: UnixTime | None
    root: str
    max_model_len: int | None


class ModelListDict(TypedDict):
    """All models."""

    object: Literal["list"]
    data: list[ModelDict]


models = extend_schema_view(get=operation("listModels", tag=MODELS, summary="List models", answer=ModelListDict))
model = extend_schema_view(
    get=operation("retrieveModel", tag=MODELS, summary="Show a model", path="name", answer=ModelDict)
)


class LiveRequestDict(TypedDict):
    """A request as the engine takes it: OpenAI's fields of this route and vLLM's own, passed through unread."""

    model: str


_NAMES = {
    "/v1/chat/completions": ("createChatCompletion", "Chat"),
    "/v1/completions": ("createCompletion", "Complete a text"),
    "/v1/responses": ("createResponse", "Respond"),
    "/v1/embeddings": ("createEmbedding", "Embed texts"),
    "/v1/score": ("createScore", "Score pairs of texts"),
    "/v1/rerank": ("createRerank", "Rank texts by a query"),
}
_STREAMS = ("/v1/chat/completions", "/v1/completions", "/v1/responses")


def live(endpoint: str) -> Callable[[V], V]:
    """Describe one live route."""
    name, summary = _NAMES[endpoint]
    answer: dict[tuple[int, str], Any] = {(200, "application/json"): {"type": "object"}}
    if endpoint in _STREAMS:
        answer[200, "text/event-stream"] = {"type": "string"}
    described = operation(
        name, tag=LIVE, summary=summary, body=LiveRequestDict, answer=answer, refuses=[404, 422, 429, 502, 504]
    )
    decorate: Callable[[V], V] = extend_schema_view(post=described)
    return decorate
