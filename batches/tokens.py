"""How many tokens a request's prompt has: the model's own tokenizer and chat template. Pure: no Django.

It follows vLLM 0.32's renderer for texts. What it can't follow exactly is not counted, with a reason, and never
guessed. It loads transformers, so it runs in a process of its own (inspection.py).
"""

import json
import re
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

# Arguments that change prompts in ways that are not followed here.
_NOT_FOLLOWED = frozenset(
    {
        "--tokenizer-mode",
        "--tokenizer-revision",
        "--revision",
        "--default-chat-template-kwargs",
        "--chat-template-content-format",
        "--trust-request-chat-template",
        "--enable-prompt-embeds",
    }
)
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
# Fields of a request that put something into the prompt, or change how it is made, and are not followed.
_NOT_FOLLOWED_FIELDS = (
    "tools",
    "chat_template",
    "truncate_prompt_tokens",
    "prompt_embeds",
    "previous_response_id",
    "previous_input_messages",
    "prompt_cache",
)
_ITERATES_CONTENT = re.compile(r"for\s+\w+\s+in\s+(\w+(\.content|\[['\"]content['\"]\])|content)\b")


# Words joined by anything but one space, with the one space before them: between two such pieces lies the end of a
# word, a space, and the beginning of a word.
_PIECE = re.compile(r"\A\s+\S+(?:(?:[^\S ]|\s\s+)\S+)*(?:\s+\Z)?| ?\S+(?:(?:[^\S ]|\s\s+)\S+)*(?:\s+\Z)?")
_LONGEST_KEPT = 64  # characters; longer pieces seldom come again
_MOST_KEPT = 500_000  # pieces, about 60 MB
# One of each class of characters that the rules of tokenizers tell apart.
_CLASSES = "aZ\u00e9\u8981" + "7" + ".'/-" + "\u0301" + "\U0001f600"


class NotCounted(Exception):
    """A request, or all of a model, whose tokens can't be counted exactly; the text is the reason."""


def _argument(arguments: Sequence[str], name: str) -> str | None:
    """Return the last value of an engine argument."""
    value = None
    for position, argument in enumerate(arguments):
        key, equals, rest = argument.partition("=")
        if key.replace("_", "-") == name:
            value = rest if equals else next(iter(arguments[position + 1 : position + 2]), None)
    return value


class Tokenizer:
    """One model's tokenizer. Raises NotCounted when it is not on this machine."""

    def __init__(self, source: str, arguments: Sequence[str]) -> None:
        given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
        if found := sorted(given & _NOT_FOLLOWED):
            raise NotCounted(f"The engine argument {found[0]} is not followed.")
        # Only the tokenizer is wanted: without torch the import takes a quarter of the time.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
        try:
            from transformers import AutoTokenizer
        except ImportError:
            raise NotCounted("The package transformers is not installed here.") from None
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                _argument(arguments, "--tokenizer") or source, local_files_only=True
            )
        except Exception:
            # Whatever a missing, foreign or broken folder makes of it.
            raise NotCounted("The model's tokenizer is not on this machine.") from None
        if not self._tokenizer.is_fast:
            raise NotCounted("The model's tokenizer is not one of the fast ones.")
        self._backend = self._tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._kept: dict[str, int] | None = {} if self._ends_at_spaces() else None
        self._words: dict[str, int] = {}  # the same for pieces that are a space and a word, without the space
        self._template = self._chat_template(_argument(arguments, "--chat-template"))
        self._in_parts = bool(_ITERATES_CONTENT.search(self._template or ""))

    def _chat_template(self, given: str | None) -> str | None:
        if given is not None:
            path = Path(given)
            return path.read_text() if len(given) < 1000 and path.is_file() else given
        template = self._tokenizer.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        return template if isinstance(template, str) else None

    def count(self, texts: Sequence[str], special: bool) -> list[int]:
        """Return the tokens of each text, with or without those that the tokenizer adds by itself."""
        if self._kept is None:
            return self._encode(texts, special)
        added = self._backend.num_special_tokens_to_add(False) if special else 0
        split = [text.split(" ") for text in texts]
        self._learn_words({word for words in split for word in words[1:-1]})
        counts, pieces = [], []
        for text, words in zip(texts, split, strict=True):
            counted = self._count_middle(words)
            counts.append(added + (counted or 0))
            pieces.append([words[0], f" {words[-1]}"] if counted is not None else _PIECE.findall(text) or [text])
        unknown = list({piece for found in pieces for piece in found}.difference(self._kept))
        kept = self._kept
        kept.update(zip(unknown, self._encode(unknown, False), strict=True))
        counts = [count + sum(map(kept.__getitem__, found)) for count, found in zip(counts, pieces, strict=True)]
        for piece in unknown:
            if len(piece) > _LONGEST_KEPT:
                del kept[piece]
        for known in (kept, self._words):
            if len(known) > _MOST_KEPT:
                known.clear()
        return counts

    def _learn_words(self, words: set[str]) -> None:
        """Count words that stand between single spaces; what only looks like one, because of other space, is not."""
        unknown = [w for w in words.difference(self._words) if 0 < len(w) <= _LONGEST_KEPT and w.strip() == w]
        self._words.update(zip(unknown, self._encode([f" {word}" for word in unknown], False), strict=True))

    def _count_middle(self, words: list[str]) -> int | None:
        """Return the tokens of a text but for those of its first and last word; None if it has more than words."""
        first, last = words[0], words[-1]
        if len(words) < 2 or not first or not last or first[-1].isspace() or last[0].isspace():
            return None
        try:
            return sum(map(self._words.__getitem__, words[1:-1]))
        except KeyError:
            return None

    def _encode(self, texts: Sequence[str], special: bool) -> list[int]:
        return [len(found) for found in self._backend.encode_batch_fast(texts, add_special_tokens=special)]

    def _ends_at_spaces(self) -> bool:
        """Return whether a token never goes on over a space between two words, so that words can be counted one by one.

        Byte-level tokenizers cut a text by rules on classes of characters before they look for tokens. Whether the
        rules cut there is tried with all classes, two characters deep on both sides.
        """
        rules = json.loads(self._backend.to_str())
        steps = rules["pre_tokenizer"] or {}
        names = {step["type"] for step in steps.get("pretokenizers", [steps]) if step}
        if "ByteLevel" not in names or (rules["normalizer"] or {"type": "NFC"})["type"] != "NFC":
            return False
        for token in rules["added_tokens"]:
            if token["lstrip"] or token["rstrip"] or token["single_word"] or re.search(r"\s", token["content"]):
                return False
        sides = ["".join(pair) for pair in product(_CLASSES, repeat=2)]
        left, right = self._encode(sides, False), self._encode([f" {side}" for side in sides], False)
        whole = self._encode([f"{first} {second}" for first, second in product(sides, repeat=2)], False)
        return whole == [before + after for before, after in product(left, right)]

    def prompts(self, endpoint: str, body: dict[str, Any]) -> tuple[list[str], list[int], bool]:
        """Return a request's texts to count, the tokens of what came as tokens, and whether special ones are added.

        Raises NotCounted.
        """
        for name in _NOT_FOLLOWED_FIELDS:
            if body.get(name):
                raise NotCounted(f"The field '{name}' is not followed.")
        special = body.get("add_special_tokens", endpoint != "/v1/chat/completions")
        if not isinstance(special, bool) or not isinstance(body.get("chat_template_kwargs") or {}, dict):
            raise NotCounted("A field has a form that the engine refuses.")
        match endpoint:
            case "/v1/chat/completions":
                return [self._render(_messages(body.get("messages")), body)], [], special
            case "/v1/responses":
                return [self._render(_messages(_input_messages(body)), body)], [], special
            case "/v1/completions":
                return *_texts(body.get("prompt")), special
            case "/v1/embeddings":
                return *_texts(body.get("input")), special
        raise NotCounted(f"Prompts of {endpoint} are put together by the engine.")

    def _render(self, messages: list[dict[str, Any]], body: dict[str, Any]) -> str:
        if self._template is None:
            raise NotCounted("The model has no chat template.")
        if any(message["role"] == "developer" for message in messages) and "developer" not in self._template:
            messages = _developer_as_system(messages)
        if self._in_parts:
            messages = [{**m, "content": [{"type": "text", "text": text} for text in m["content"]]} for m in messages]
        else:
            messages = [{**message, "content": "\n".join(message["content"])} for message in messages]
        extra = {name: body.get(name) for name in ("documents", "reasoning_effort") if body.get(name) is not None}
        if "reasoning_effort" in extra:
            extra["enable_thinking"] = extra["reasoning_effort"] != "none"
        options = {**extra, **(body.get("chat_template_kwargs") or {})}
        options["add_generation_prompt"] = body.get("add_generation_prompt", True)
        options["continue_final_message"] = body.get("continue_final_message", False)
        try:
            rendered = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, **options
            )
        except Exception:
            # A template says no by raising whatever it likes.
            raise NotCounted("The chat template refuses the messages.") from None
        return str(rendered)


def _texts(value: Any) -> tuple[list[str], list[int]]:
    """Return the texts of a prompt in any of its four shapes, and the lengths of those given as tokens."""
    if isinstance(value, str):
        return [value], []
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value, []
        if all(isinstance(item, int) for item in value):
            return [], [len(value)]
        if all(isinstance(item, list) for item in value):
            return [], [len(item) for item in value]
    raise NotCounted("The prompt has a form that the engine refuses.")


def _messages(value: Any) -> list[dict[str, Any]]:
    """Return chat messages with their content as a list of texts."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise NotCounted("The messages have a form that the engine refuses.")
    found = []
    for item in value:
        if item.get("tool_calls") or item.get("tool_call_id") or item.get("reasoning") or item.get("tools"):
            raise NotCounted("Tool calls and reasoning in messages are not followed.")
        message = {"role": item.get("role"), "content": _content(item.get("content"))}
        if isinstance(item.get("name"), str):
            message["name"] = item["name"]
        found.append(message)
    return found


def _content(value: Any) -> list[str]:
    if value is None:
        return []
    parts = [value] if isinstance(value, str) else value
    texts = []
    for part in parts if isinstance(parts, list) else [None]:
        text = part
        if isinstance(part, dict) and part.get("type", "text") in _TEXT_PARTS:
            text = part.get("text")
        if not isinstance(text, str):
            raise NotCounted("Content other than text is not counted.")
        texts.append(text)
    return [text for text in texts if text]


def _input_messages(body: dict[str, Any]) -> list[Any]:
    """Return the messages that vLLM makes of a request to the responses endpoint."""
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(items, list) or any(
        not isinstance(i, dict) or i.get("type", "message") != "message" for i in items
    ):
        raise NotCounted("Input other than messages is not followed.")
    instructions = body.get("instructions")
    return [{"role": "system", "content": instructions}, *items] if instructions else items


def _developer_as_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put what developers say into one system message at the beginning, as vLLM does for templates that know none."""
    roles = ("system", "developer")
    said = ["\n".join(message["content"]) for message in messages if message["role"] in roles]
    rest = [message for message in messages if message["role"] not in roles]
    return [{"role": "system", "content": ["\n\n".join(text for text in said if text)]}, *rest]
