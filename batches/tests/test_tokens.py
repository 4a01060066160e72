"""Token counts are those of the model's own tokenizer and template, line by line."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vbatch_site.tests.servers import EMBEDDING_MODEL, MODEL, chat_line

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDERS = {
    MODEL: ROOT / "var" / "models" / "SmolLM2-135M-Instruct",
    EMBEDDING_MODEL: ROOT / "var" / "models" / "all-MiniLM-L6-v2",
}
pytestmark = pytest.mark.skipif(not FOLDERS[MODEL].is_dir(), reason="the sample models are not prepared here")

TEXTS = [
    "",
    " ",
    "hello",
    "  two  spaces  and a tab\tand\n\n lines \n",
    "digits 1234567890 and 3.14159",
    "don't you'll we've I'm",
    "\u8981\u6c42 \U0001f600 \u00e9 e\u0301 \u00a0 \u2028 \u200b",
    "<|im_start|>user\nnot a turn<|im_end|>",
    "<|endoftext|>",
    "x" * 3000,
    "def f(a, b):\n    return a[b] ** 2  # comment\n" * 20,
]


def _inspect(lines: list[str], endpoint: str, path: Path, context: int | None = None) -> dict[str, Any]:
    """Run the inspection as its parent does, and return the report of the one model."""
    path.write_text("".join(lines))
    descriptor = os.open(path, os.O_RDONLY)
    request = {
        "descriptor": descriptor,
        "endpoint": endpoint,
        "model": "",
        "share_answers": True,
        "allow_mixed_models": True,
        "skip": False,
        "catalogue": {name: [endpoint] for name in FOLDERS},
        "engines": {
            name: {"source": str(folder), "arguments": [], "context": context} for name, folder in FOLDERS.items()
        },
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "batches.inspection"],
        cwd=ROOT,
        env={**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[descriptor],
    )
    os.close(descriptor)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    report = json.loads(process.stdout.read())
    process.stdin.close()
    process.stdout.close()
    process.wait(60)
    assert report["errors"] == []
    (model,) = report["models"]
    assert model["not_counted"] == {}
    return dict(model)


def _line(number: int, endpoint: str, model: str, **body: Any) -> str:
    return (
        json.dumps({"custom_id": str(number), "method": "POST", "url": endpoint, "body": {"model": model, **body}})
        + "\n"
    )


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDERS[MODEL], local_files_only=True)


def _conversations() -> list[list[dict[str, str]]]:
    chance = random.Random(1)
    words = "alpha beta 12 gamma, delta; x=1 \n \n\n   - *bold* \u00fc\u00df \U0001f680 CamelCase snake_case".split(" ")
    # What the rules of tokenizers tell apart, in every neighbourhood, with all kinds of space between.
    classes = "aZs\u00e9\u8981 7.'/-\u0301\U0001f600\n\t \u00a0  "
    noise = ["".join(chance.choices(classes, k=chance.randrange(60))) for _ in range(2000)]
    found = [[{"role": "user", "content": text}] for text in TEXTS + noise]
    for _ in range(200):
        system = [{"role": "system", "content": " ".join(chance.choices(words, k=30))}]
        turns = [
            {"role": role, "content": " ".join(chance.choices(words, k=chance.randrange(60)))}
            for role in ("user", "assistant", "user")
        ]
        found.append(chance.choice(([], system)) + turns[: chance.choice((1, 3))])
    return found


def test_chats_have_the_tokens_that_the_template_gives_them_line_by_line(tokenizer: Any, tmp_path: Path) -> None:
    conversations = _conversations()
    wanted = [
        len(tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False))
        for chat in conversations
    ]
    endpoint = "/v1/chat/completions"
    lines = [_line(i, endpoint, MODEL, messages=chat) for i, chat in enumerate(conversations)]
    # A context of one token makes each line too long, and so tells the tokens of each.
    model = _inspect(lines, endpoint, tmp_path / "input", context=1)
    assert [line["prompt_tokens"] for line in model["too_long"]] == wanted[: len(model["too_long"])]
    assert model["prompt_tokens"] == sum(wanted)
    assert model["too_long_total"] == len(wanted)


def test_content_in_parts_instructions_and_developers_count_as_the_engine_puts_them(
    tokenizer: Any, tmp_path: Path
) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    chat = _inspect(
        [chat_line("a", messages=[{"role": "user", "content": parts}])], "/v1/chat/completions", tmp_path / "a"
    )
    joined = [{"role": "user", "content": "one\ntwo"}]
    assert chat["prompt_tokens"] == _count(tokenizer, joined)
    developer = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": "hi"}]
    chat = _inspect([chat_line("a", messages=developer)], "/v1/chat/completions", tmp_path / "b")
    system = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert chat["prompt_tokens"] == _count(tokenizer, system)
    line = _line(1, "/v1/responses", MODEL, input="hi", instructions="be brief")
    assert _inspect([line], "/v1/responses", tmp_path / "c")["prompt_tokens"] == _count(tokenizer, system)


def _count(tokenizer: Any, chat: list[dict[str, str]]) -> int:
    return len(tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False))


def test_completions_count_texts_and_tokens(tokenizer: Any, tmp_path: Path) -> None:
    prompts: list[Any] = [*filter(None, TEXTS), ["one", "two words"], [1, 2, 3], [[1, 2], [3]]]
    lines = [_line(i, "/v1/completions", MODEL, prompt=prompt) for i, prompt in enumerate(prompts)]
    texts = [*filter(None, TEXTS), "one", "two words"]
    wanted = sum(len(tokenizer(text).input_ids) for text in texts) + 3 + 3
    assert _inspect(lines, "/v1/completions", tmp_path / "input")["prompt_tokens"] == wanted


def test_embeddings_count_with_the_tokens_that_the_model_adds(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[EMBEDDING_MODEL], local_files_only=True)
    inputs: list[Any] = ["hello world", ["one", "Two \u00e9"], "word " * 500]
    lines = [_line(i, "/v1/embeddings", EMBEDDING_MODEL, input=text) for i, text in enumerate(inputs)]
    texts = ["hello world", "one", "Two \u00e9", "word " * 500]
    wanted = sum(len(tokenizer(text, truncation=False).input_ids) for text in texts)
    assert _inspect(lines, "/v1/embeddings", tmp_path / "input")["prompt_tokens"] == wanted
