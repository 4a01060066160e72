"""What the catalogue answers: which models there are, what each can be asked, how each is started."""

from collections.abc import Set

from django.conf import settings

from workers import samples
from workers.models import CHAT_ENDPOINTS, EMBEDDING_ENDPOINTS, ServedModel

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"

# Its context is said here because a longer one in VBATCH_VLLM_ARGS, meant for chat models, would keep it from loading.
MINILM_ARGS = "--runner pooling --max-model-len 256"

# The catalogue of a new installation; it is edited in the admin from then on.
FIRST_ENTRIES: list[dict[str, object]] = [
    {"name": name, "source": name, "endpoints": CHAT_ENDPOINTS}
    for name in (
        "Qwen/Qwen2.5-3B-Instruct",
        "google/gemma-3-4b-it",
        "meta-llama/Llama-3.2-3B-Instruct",
        "meta-llama/Llama-3.2-1B-Instruct",
        "Qwen/Qwen2.5-0.5B-Instruct",
        SMOLLM2,
    )
] + [{"name": MINILM, "source": MINILM, "endpoints": EMBEDDING_ENDPOINTS, "engine_args": MINILM_ARGS}]


def answerable() -> dict[str, Set[str]]:
    """Return the enabled models by name, and the endpoints that each answers."""
    rows = ServedModel.objects.filter(enabled=True).values_list("name", "endpoints")
    return {name: frozenset(endpoints) for name, endpoints in rows}


def source_of(model: ServedModel) -> str:
    """Return what vLLM is given to load: the sample models' own folder once they are prepared, else the entry's source."""
    prepared = samples.path_of(model.source, settings.VBATCH_HOME)
    return str(prepared) if prepared is not None and prepared.is_dir() else model.source
