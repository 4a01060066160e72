"""What the catalogue answers: which models there are, what each can be asked, how each is started."""

from collections.abc import Set

from django.conf import settings

from workers import samples
from workers.models import CHAT_ENDPOINTS, EMBEDDING_ENDPOINTS, ServedModel

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


def source_of(model: ServedModel) -> str:
    """Return what vLLM is given to load: a prepared sample model's folder, else the entry's source."""
    prepared = samples.path_of(model.source, settings.VBATCH_HOME)
    return str(prepared) if prepared is not None and prepared.is_dir() else model.source
