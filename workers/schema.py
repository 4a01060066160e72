"""How the Models API is described."""

from typing import Literal, TypedDict

from drf_spectacular.utils import extend_schema_view

from vbatch_site.openai.schema import UnixTime, operation

MODELS = "Models"


class ModelDict(TypedDict):
    """OpenAI's model object, and where the model comes from (contract.md 6)."""

    id: str
    object: Literal["model"]
    created: UnixTime
    owned_by: str
    shutdown_date: UnixTime | None
    root: str


class ModelListDict(TypedDict):
    """All models."""

    object: Literal["list"]
    data: list[ModelDict]


models = extend_schema_view(get=operation("listModels", tag=MODELS, summary="List models", answer=ModelListDict))
model = extend_schema_view(
    get=operation("retrieveModel", tag=MODELS, summary="Show a model", path="name", answer=ModelDict)
)
