"""Input files of the comparison with vLLM's own runner, the same from run to run."""

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SUBJECTS = ["rivers", "clocks", "whales", "bread", "bridges", "violins", "maps", "volcanoes", "bees", "trains"]
_WORDS = (
    "the of a river stone winter paper engine garden music copper harbour silver morning letter window mountain "
    "teacher bridge ocean candle forest market village doctor planet summer kitchen machine island story number"
).split()

# A cache of 8,192 tokens, which is what a few documents fill.
SMALL_CACHE_TOKENS = 8192
# vLLM's block on a CPU; one too small for it is refused by name.
_BLOCK_TOKENS = 128
# A file has many more lines than an engine runs at once; with vLLM's own 256 these few hundred would be one wave.
FEW_AT_ONCE = "--max-num-seqs 32"
SMALL_CACHE = f"--block-size {_BLOCK_TOKENS} --num-gpu-blocks-override {SMALL_CACHE_TOKENS // _BLOCK_TOKENS}"


@dataclass(frozen=True, slots=True)
class Workload:
    """What is run, and what it must reach against vLLM's own runner."""

    name: str
    at_least: float
    write: Callable[[float], list[str]]  # lines of a file, for a part of the full size
    arguments: str = ""


def _line(index: int, text: str, tokens: int, system: str = "") -> str:
    messages = [{"role": "system", "content": system}] if system else []
    body = {
        "model": MODEL,
        "messages": [*messages, {"role": "user", "content": text}],
        "max_tokens": tokens,
        "temperature": 0,
    }
    return json.dumps({"custom_id": f"r{index}", "method": "POST", "url": "/v1/chat/completions", "body": body})


def _prose(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(_WORDS, k=words))


def _numbered(texts: Iterable[tuple[str, int]]) -> list[str]:
    return [_line(i, text, tokens) for i, (text, tokens) in enumerate(texts)]


def _fact(chance: random.Random, i: int) -> str:
    subject, other = chance.sample(_SUBJECTS, 2)
    return f"{i}: tell me {chance.randint(2, 99)} facts on {subject} and {other}."


def unrelated(part: float) -> list[str]:
    """Return unrelated chat requests with 16 to 96 tokens to generate."""
    chance = random.Random(1)  # noqa: S311
    return _numbered((_fact(chance, i), chance.randint(16, 96)) for i in range(round(600 * part)))


def documents(part: float) -> list[str]:
    """Return 10 questions on each of 20 documents, shuffled."""
    chance = random.Random(2)  # noqa: S311
    texts = []
    for number in range(max(2, round(20 * part))):
        document = f"Document {number}. {_prose(chance, 780)}"
        texts += [f"{document}\n\nQuestion {q}: what is said of {chance.choice(_WORDS)}?" for q in range(10)]
    chance.shuffle(texts)
    return _numbered((text, 8) for text in texts)


def tree(part: float) -> list[str]:
    """Return few-shot headers nested three deep, each leaf asked often, shuffled."""
    chance = random.Random(3)  # noqa: S311
    texts = []
    for _ in range(max(1, round(4 * part))):
        task = f"Task: {_prose(chance, 350)}"
        for _ in range(4):
            examples = f"{task}\n\nExamples: {_prose(chance, 250)}"
            for _ in range(3):
                style = f"{examples}\n\nStyle: {_prose(chance, 100)}"
                texts += [f"{style}\n\nInput: {_prose(chance, 12)}" for _ in range(4)]
    chance.shuffle(texts)
    return _numbered((text, 8) for text in texts)


def repeats(part: float) -> list[str]:
    """Return requests of which three in ten are exact repeats of others."""
    chance = random.Random(4)  # noqa: S311
    count = round(300 * part)
    fresh = [(_fact(chance, i), 48) for i in range(round(count * 0.7))]
    texts = fresh + chance.choices(fresh, k=count - len(fresh))
    chance.shuffle(texts)
    return _numbered(texts)


def long_tail(part: float) -> list[str]:
    """Return short requests, and at the end 2 % that generate 20 times as much."""
    chance = random.Random(5)  # noqa: S311
    count = round(400 * part)
    texts = [(_fact(chance, i), 12) for i in range(count - count // 50)]
    # A story goes on for as long as it may; a fact would end early.
    texts += [(f"{i}: write a very long story about {chance.choice(_SUBJECTS)}.", 240) for i in range(count // 50)]
    return _numbered(texts)


def short(part: float) -> list[str]:
    """Return chats of a dozen tokens with four to generate: what is waited for is the server, not the model."""
    chance = random.Random(6)  # noqa: S311
    lines = []
    for i in range(max(10, round(100 * part))):
        messages = [
            {"role": "system", "content": "Add."},  # without one the model's template puts in a long one of its own
            {"role": "user", "content": f"{chance.randint(1, 99)} + {chance.randint(1, 99)}"},
        ]
        body = {"model": MODEL, "messages": messages, "max_tokens": 4, "temperature": 0}
        lines.append({"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions", "body": body})
    return [json.dumps(line) for line in lines]


WORKLOADS = [
    Workload("unrelated", 0.98, unrelated),
    Workload("documents", 2.5, documents, SMALL_CACHE),
    Workload("tree", 1.7, tree, SMALL_CACHE),
    Workload("repeats", 1.3, repeats),
    Workload("long tail", 1.05, long_tail, FEW_AT_ONCE),
]
