"""The Models API."""

from rest_framework.response import Response
from rest_framework.views import APIView

from vbatch_site.openai.auth import ApiRequest
from vbatch_site.openai.errors import ApiError
from workers import catalogue, schema
from workers.models import ServedModel
from workers.schema import ModelDict


def model_dict(model: ServedModel) -> ModelDict:
    """Return OpenAI's model object (contract.md 6), and what vLLM adds to it."""
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.created_at.timestamp()),
        "owned_by": "vbatch",
        "shutdown_date": None,
        "root": model.source,
        "max_model_len": catalogue.max_model_len(model),
    }


@schema.models
class ModelsView(APIView):
    """All models."""

    scope = None

    def get(self, request: ApiRequest) -> Response:
        """List what can be asked for."""
        models = catalogue.askable(request.user)
        return Response({"object": "list", "data": [model_dict(model) for model in models]})


@schema.model
class ModelView(APIView):
    """One model; its name may have slashes, encoded or not."""

    scope = None

    def get(self, request: ApiRequest, name: str) -> Response:
        """Show it."""
        model = catalogue.askable(request.user).filter(name=name.replace("\0", "")).first()
        if model is None:
            raise ApiError(
                f"The model '{name[:200]}' does not exist", param="model", code="model_not_found", http_status=404
            )
        return Response(model_dict(model))
