"""What is told of a model's files, its engine and its GPU."""

from pathlib import Path

import pytest

from workers import provenance
from workers.engine import EngineSpec


def _folder(path: Path, weights: bytes = b"w" * 3_000_000) -> Path:
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(weights)
    (path / "tokenizer.json").write_text("{}")
    (path / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    return path


def _collect(source: str, *arguments: str) -> provenance.Facts:
    return provenance.collect(EngineSpec("m", source, arguments, "sim", Path("log")), "1.0")


def test_the_same_files_have_the_same_facts_and_others_have_others(tmp_path: Path) -> None:
    one, same = _folder(tmp_path / "a"), _folder(tmp_path / "b")
    tuned = _folder(tmp_path / "c", b"w" * 1_500_000 + b"x" * 1_500_000)
    facts = _collect(str(one), "--max-model-len", "9")
    assert facts["engine_args"] == ["--max-model-len", "9"]
    assert provenance.digest(facts) == provenance.digest(_collect(str(same), "--max-model-len", "9"))
    other = _collect(str(tuned), "--max-model-len", "9")
    assert facts["weights_hash"] != other["weights_hash"]
    assert facts["tokenizer_hash"] == other["tokenizer_hash"]
    assert facts["chat_template_hash"] == other["chat_template_hash"]


def test_a_chat_template_that_the_engine_is_given_counts_before_the_model_s_own(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    (tmp_path / "mine.jinja").write_text("mine")
    own = _collect(str(folder))["chat_template_hash"]
    assert own != _collect(str(folder), f"--chat-template={tmp_path / 'mine.jinja'}")["chat_template_hash"]


def test_a_hub_s_model_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--org--name"
    _folder(model / "snapshots" / "0123abcd")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0123abcd")
    facts = _collect("org/name")
    assert facts["revision"] == "0123abcd"
    assert facts["weights_hash"]
    assert _collect("org/name", "--revision", "0123abcd")["revision"] == "0123abcd"


def test_what_cannot_be_told_is_none() -> None:
    facts = _collect("org/not-here")
    assert {facts[name] for name in ("revision", "weights_hash", "tokenizer_hash", "chat_template_hash", "gpu")} == {
        None
    }


def test_gpus_are_named_and_counted_as_far_as_the_engine_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 1\n")
    monkeypatch.setattr(provenance, "_GPUS", tmp_path)
    assert provenance.gpu_name(None) == "3 x NVIDIA H200"
    assert provenance.gpu_name("0,2") == "2 x NVIDIA H200"
    assert provenance.gpu_name("1") == "NVIDIA H200"
    monkeypatch.setattr(provenance, "_GPUS", tmp_path / "none")
    assert provenance.gpu_name("0") is None


def test_a_strange_model_folder_keeps_no_engine_from_serving(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "a")
    (folder / "tokenizer_config.json").write_text("[]")
    facts = _collect(str(folder))
    assert facts["chat_template_hash"] is None
    assert facts["weights_hash"]
    assert _collect("/" + "x" * 5000)["weights_hash"] is None
