"""What the catalogue answers: which models there are, what each can be asked, how each is started."""

import json
import re
from collections.abc import Iterable, Sequence, Set
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db.models import Q, QuerySet

from batches.catalogue import Engine
from vbatch_site.models import Project
from workers import samples
from workers.engine import split_arguments
from workers.models import CHAT_ENDPOINTS, EMBEDDING_ENDPOINTS, ServedModel, Service, ServiceState

SMOLLM2 = samples.CHAT_MODEL
MINILM = samples.EMBEDDING_MODEL

# Its context is said here because a longer one in VBATCH_VLLM_ARGS, meant for chat models, would keep it from loading.
MINILM_ARGS = "--runner pooling --max-model-len 256"

# Without a parser vLLM refuses requests that bring tools.
_HERMES_TOOLS = "--enable-auto-tool-choice --tool-call-parser hermes"
_LLAMA_TOOLS = "--enable-auto-tool-choice --tool-call-parser llama3_json"

# The catalogue of a new installation; it is edited in the admin from then on.
FIRST_ENTRIES: list[dict[str, object]] = [
    {"name": name, "source": name, "endpoints": endpoints, "engine_args": arguments}
    for name, endpoints, arguments in (
        ("Qwen/Qwen2.5-3B-Instruct", CHAT_ENDPOINTS, _HERMES_TOOLS),
        ("google/gemma-3-4b-it", CHAT_ENDPOINTS, ""),
        ("meta-llama/Llama-3.2-3B-Instruct", CHAT_ENDPOINTS, _LLAMA_TOOLS),
        ("meta-llama/Llama-3.2-1B-Instruct", CHAT_ENDPOINTS, _LLAMA_TOOLS),
        ("Qwen/Qwen2.5-0.5B-Instruct", CHAT_ENDPOINTS, _HERMES_TOOLS),
        (SMOLLM2, CHAT_ENDPOINTS, _HERMES_TOOLS),
        (MINILM, EMBEDDING_ENDPOINTS, MINILM_ARGS),
    )
]


def answerable() -> dict[str, Set[str]]:
    """Return the enabled models by name, and the endpoints that each answers."""
    rows = ServedModel.objects.filter(enabled=True).values_list("name", "endpoints")
    return {name: frozenset(endpoints) for name, endpoints in rows}


def askable(project: Project) -> QuerySet[ServedModel]:
    """Return the models that a project's live requests may name: the enabled ones, and those it runs itself."""
    own = Service.objects.filter(project=project, state=ServiceState.RUNNING)
    return ServedModel.objects.filter(Q(enabled=True) | Q(pk__in=own.values("model")))


def source_of(model: ServedModel) -> str:
    """Return what vLLM is given to load: a prepared sample model's folder, else the entry's source."""
    prepared = samples.path_of(model.source, settings.VBATCH_HOME)
    return str(prepared) if prepared is not None and prepared.is_dir() else model.source


def engines(names: Iterable[str]) -> dict[str, Engine]:
    """Return how each of these models is run, those that are in the catalogue."""
    rows = ServedModel.objects.filter(name__in=list(names))
    return {row.name: Engine(source_of(row), _arguments(row), max_model_len(row)) for row in rows}


def _arguments(model: ServedModel) -> tuple[str, ...]:
    return split_arguments(settings.VBATCH_VLLM_ARGS, model.engine_args)


def quantization(model: ServedModel) -> str:
    """Return how a model's weights are quantized, as its arguments say, else its config.json, else empty."""
    arguments = list(_arguments(model))
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in ("--quantization", "-q"):
            return value if equals else "".join(arguments[position + 1 : position + 2])
    found = (_config(Path(source_of(model))) or {}).get("quantization_config")
    return str(found.get("quant_method", "")) if isinstance(found, dict) else ""


_LENGTH = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
# vLLM's multipliers: small letters count in tens, capital ones in twos.
_MULTIPLIERS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def max_model_len(model: ServedModel) -> int | None:
    """Return a model's tokens of context: as its arguments say, else its last engine, else its config.json."""
    said = _argued_length(_arguments(model))
    return said or model.max_model_len or _configured_length(Path(source_of(model)))


def _argued(arguments: Sequence[str], *names: str) -> str | None:
    """Return the value that counts of an argument with these names, None where it is not given."""
    found = None
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        # vLLM takes underscores for hyphens.
        if name.replace("_", "-") in names:
            found = value if equals else " ".join(arguments[position + 1 : position + 2])
    return found


def _argued_length(arguments: Sequence[str]) -> int | None:
    """Return what --max-model-len says, None where it is not given or left to the engine."""
    found = _LENGTH.fullmatch(_argued(arguments, "--max-model-len") or "")
    return int(float(found[1]) * _MULTIPLIERS[found[2]]) if found else None


def tensor_parallel(name: str) -> int:
    """Return the GPUs that a model's entry splits it over, 1 where it says nothing."""
    model = ServedModel.objects.filter(name=name).first()
    said = _argued(_arguments(model), "--tensor-parallel-size", "-tp") if model is not None else None
    return int(said) if said and said.isdigit() else 1


def _configured_length(folder: Path) -> int | None:
    """Return what a model folder's config.json says."""
    config = _config(folder)
    # Models that see and hear keep what their text part has one level below.
    parts = [config, config.get("text_config")] if isinstance(config, dict) else []
    lengths = [part.get("max_position_embeddings") for part in parts if isinstance(part, dict)]
    return next((length for length in lengths if isinstance(length, int) and length > 0), None)


def _config(folder: Path) -> Any:
    """Return a model folder's config.json, None where there is none."""
    if not folder.is_absolute():
        return None
    try:
        return json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
