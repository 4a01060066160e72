"""What answers: a model's files, the engine and the machine, as facts that are kept with batches. Pure: no Django.

Weights are gigabytes, so their digest is taken of the files' names, sizes, headers and a few blocks spread over each:
enough to tell any two models or fine-tunes apart that were not made to be confused.
"""

import json
import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from workers.engine import EngineSpec

_WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")
_BLOCK = 64 << 10  # bytes
_BLOCKS = 16  # of each file of weights
_GPUS = Path("/proc/driver/nvidia/gpus")

Facts = dict[str, Any]


def collect(spec: EngineSpec, version: str | None) -> Facts:
    """Return the facts about an engine that is ready; what can't be told is None."""
    try:
        folder, revision = find_model(spec.source, _argument(spec.arguments, "--revision") or "main")
        gpu = gpu_name(spec.environment.get("CUDA_VISIBLE_DEVICES"))
    except OSError:
        folder = revision = gpu = None
    return {
        "model": spec.name,
        "engine": spec.kind,
        "engine_version": version,
        "engine_args": list(spec.arguments),
        "revision": revision,
        "weights_hash": _or_none(weights_hash, folder),
        "tokenizer_hash": _or_none(tokenizer_hash, folder),
        "chat_template_hash": _or_none(chat_template_hash, folder, _argument(spec.arguments, "--chat-template")),
        # The simulated engine computes nothing, on a GPU or off it.
        "gpu": gpu if spec.kind == "vllm" else None,
    }


def digest(facts: Facts) -> str:
    """Return a name for a set of facts: the same for the same facts."""
    return blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _argument(arguments: Sequence[str], name: str) -> str | None:
    """Return the last value that a command line gives to an argument."""
    found = None
    for index, this in enumerate(arguments):
        if this == name:
            found = next(iter(arguments[index + 1 :]), None)
        elif this.startswith(f"{name}="):
            found = this.partition("=")[2]
    return found


def _or_none(function: Any, folder: Path | None, *more: Any) -> str | None:
    try:
        return function(folder, *more) if folder is not None else None
    # A strange file must not keep an engine from serving.
    except (OSError, ValueError, AttributeError):
        return None


def find_model(source: str, revision: str) -> tuple[Path | None, str | None]:
    """Return a model's folder or file here, and the hub's commit of it; a hub's id is looked up in the hub's cache."""
    path = Path(source).expanduser()
    if path.exists():
        # A snapshot in the cache may be named by its folder.
        return path, path.name if path.parent.name == "snapshots" else None
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    model = cache / ("models--" + source.replace("/", "--"))
    try:
        commit = (model / "refs" / revision).read_text().strip()
    except OSError:
        commit = revision
    snapshot = model / "snapshots" / commit
    return (snapshot, commit) if snapshot.is_dir() else (None, None)


def weights_hash(folder: Path) -> str | None:
    """Return a digest of a model's weights."""
    files = sorted(_weights(folder))
    if not files:
        return None
    found = sha256()
    for path in files:
        size = path.stat().st_size
        found.update(f"{path.name}\n{size}\n".encode())
        with path.open("rb") as stream:
            # The header of a safetensors file is at its beginning, within the first blocks or so.
            for part in range(_BLOCKS):
                stream.seek(max(0, size - _BLOCK) * part // (_BLOCKS - 1))
                found.update(stream.read(_BLOCK))
    return found.hexdigest()


def _weights(folder: Path) -> Iterable[Path]:
    return [folder] if folder.is_file() else [path for path in folder.iterdir() if path.suffix in _WEIGHTS]


def tokenizer_hash(folder: Path) -> str | None:
    """Return a digest of a model's tokenizer."""
    for name in _TOKENIZERS:
        if (folder / name).is_file():
            return sha256((folder / name).read_bytes()).hexdigest()
    return None


def chat_template_hash(folder: Path, argument: str | None) -> str | None:
    """Return a digest of the chat template: the one that the engine was given, else the model's own."""
    if argument is not None:
        path = Path(argument)
        return sha256(path.read_bytes() if path.is_file() else argument.encode()).hexdigest()
    own = folder / "chat_template.jinja"
    if own.is_file():
        return sha256(own.read_bytes()).hexdigest()
    config = folder / "tokenizer_config.json"
    template = json.loads(config.read_text()).get("chat_template") if config.is_file() else None
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return sha256(text.encode()).hexdigest()


def gpu_name(devices: str | None) -> str | None:
    """Return what GPUs an engine has, such as `2 x NVIDIA H200`; None without."""
    names = []
    for information in sorted(_GPUS.glob("*/information")):
        lines = information.read_text().splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    if devices is not None:
        wanted = [name for name in devices.split(",") if name.strip()]
        names = [names[int(name)] for name in wanted if name.isdigit() and int(name) < len(names)] or names[
            : len(wanted)
        ]
    if not names:
        return None
    return ", ".join(
        name if names.count(name) == 1 else f"{names.count(name)} x {name}" for name in dict.fromkeys(names)
    )
