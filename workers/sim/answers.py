"""Turn the body of a request into a job, and a job into the answer that vLLM would write.

A job is made once its body was found right. It knows its texts and its length in tokens; whoever holds it decides when
it is answered.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import ClassVar

import msgspec

from .bodies import (
    TOKEN_CHARS,
    ChatBody,
    CompletionBody,
    Message,
    ResponsesBody,
    Sampling,
    count_tokens,
    decoded,
    read_inputs,
    read_messages,
)
from .refusals import bad_request, bad_value

ECHO_CHARS = 200
# vLLM's default for /v1/completions; the chat's default is all that fits.
COMPLETION_MAX_TOKENS = 16
FINGERPRINT = "vllm-sim"

encode = msgspec.json.Encoder().encode


def random_hex() -> str:
    """Return 16 hexadecimal digits, vLLM's random id; it need not be secret."""
    return f"{random.getrandbits(64):016x}"  # noqa: S311


class Draft:
    """The text of an answer, its tokens and why it ends."""

    __slots__ = ("finish_reason", "text", "tokens")

    def __init__(self, user_text: str, body: Sampling, limit: int | None) -> None:
        text = f"echo: {user_text[:ECHO_CHARS]}"
        tokens = count_tokens(text)
        self.finish_reason = "stop"
        wanted = max(tokens, body.min_tokens)
        if limit is not None and (wanted > limit or body.ignore_eos):
            wanted = limit
            self.finish_reason = "length"
        if wanted > tokens:
            # Filler of one token each, so that the text is as long as the usage says.
            text = text.ljust(tokens * TOKEN_CHARS, ".") + " and" * (wanted - tokens)
        self.text = text[: wanted * TOKEN_CHARS]
        self.tokens = wanted

    def cut(self, room: int) -> None:
        """End where the model's context does."""
        if self.tokens > room:
            self.text = self.text[: room * TOKEN_CHARS]
            self.tokens = room
            self.finish_reason = "length"

    def pieces(self) -> Iterator[str]:
        """Give the text token by token."""
        for start in range(0, len(self.text), TOKEN_CHARS):
            yield self.text[start : start + TOKEN_CHARS]


class Job:
    """What any endpoint makes of a request."""

    id_prefix: ClassVar[str]
    model: str | None
    priority: int = 0
    stream: bool = False
    # What the request log gets.
    user_text: str
    # What counts as the prompt.
    prompt: str
    prompt_tokens: int
    # Tokens generated in all, and the steps in which they are: choices of one request are decoded side by side.
    completion_tokens: int = 0
    steps: int = 0
    # Tokens of the prompt that the prefix cache had; set by whoever runs the job.
    cached_tokens: int = 0

    def check(self, max_model_len: int | None) -> None:
        """Refuse what doesn't fit the model."""
        if max_model_len is not None and self.prompt_tokens > max_model_len:
            # The tokenizer stops one token above the limit, so vLLM never knows how many there are.
            seen = max_model_len + 1
            raise bad_value(
                f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
                f"at least {seen} input tokens, which exceeds this limit even without any output tokens. "
                "Please reduce the length of the input prompt.",
                param="input_tokens",
                value=seen,
            )

    def garble(self) -> None:
        """Make the answer a wrong one that looks well."""

    def answer(self, request_id: str, model: str) -> bytes:
        """Write the whole answer."""
        raise NotImplementedError

    def events(self, request_id: str, model: str) -> Iterator[tuple[int, bytes]]:
        """Give the stream's events, each with the number of decode steps that come before it."""
        raise NotImplementedError

    def usage(self) -> dict[str, object]:
        """Write the usage of everything but the responses API."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "created_cache_tokens": None},
            "completion_tokens_details": None,
        }


class Generation(Job):
    """A job that samples tokens."""

    limit_name = "max_tokens"
    # One for each choice; choices of one prompt share theirs.
    drafts: Sequence[Draft]

    def garble(self) -> None:
        """Turn the texts around."""
        for draft in {id(draft): draft for draft in self.drafts}.values():
            draft.text = draft.text[::-1]

    def __init__(self, body: Sampling, limit: int | None) -> None:
        """Refuse the sampling parameters that vLLM refuses."""
        self.model = body.model
        self.priority = body.priority
        self.stream = bool(body.stream)
        self.include_usage = bool(body.stream_options and body.stream_options.include_usage)
        self.limit = limit
        self.choices = 1 if body.n is None else body.n
        if self.choices < 1:
            raise bad_value(f"n must be at least 1, got {body.n}.", param="n", value=body.n)
        temperature = body.temperature
        if temperature is not None:
            if temperature < 0:
                raise bad_value(
                    f"temperature must be non-negative, got {temperature}.", param="temperature", value=temperature
                )
            if temperature > 2:
                raise bad_value(
                    f"temperature must be in [0, 2], got {temperature}.", param="temperature", value=temperature
                )
            if temperature == 0 and self.choices > 1:
                raise bad_request(f"n must be 1 when using greedy sampling, got {self.choices}.")
        if body.top_p is not None and not 0 < body.top_p <= 1:
            raise bad_value(f"top_p must be in (0, 1], got {body.top_p}.", param="top_p", value=body.top_p)
        if limit is not None and limit < 1:
            raise bad_value(f"max_tokens must be at least 1, got {limit}.", param="max_tokens", value=limit)
        if body.min_tokens < 0:
            raise bad_request(f"min_tokens must be greater than or equal to 0, got {body.min_tokens}.")
        if limit is not None and body.min_tokens > limit:
            raise bad_request(f"min_tokens must be less than or equal to max_tokens={limit}, got {body.min_tokens}.")

    def check(self, max_model_len: int | None) -> None:
        """Refuse a prompt that leaves no room for an answer; one that leaves little gets a short answer."""
        if max_model_len is None:
            return
        if self.limit is not None and self.limit > max_model_len:
            raise bad_value(
                f"{self.limit_name}={self.limit} cannot be greater than max_model_len={max_model_len}. "
                "Please request fewer output tokens.",
                param=self.limit_name,
                value=self.limit,
            )
        super().check(max_model_len)
        if self.prompt_tokens == max_model_len:
            raise bad_request(
                f"The decoder prompt (length {self.prompt_tokens}) plus the number of requested output tokens (at "
                f"least 1) is longer than the maximum model length of {max_model_len}. Make sure that "
                "`max_model_len` is no smaller than the number of text tokens (prompt + requested output tokens)."
            )
        for draft in self.drafts:
            draft.cut(max_model_len - self.prompt_tokens)
        self.measure()

    def measure(self) -> None:
        """Count what is generated."""
        self.steps = max(draft.tokens for draft in self.drafts)
        self.completion_tokens = sum(draft.tokens for draft in self.drafts)


class Chat(Generation):
    """POST /v1/chat/completions."""

    id_prefix = "chatcmpl"
    decode = msgspec.json.Decoder(ChatBody, strict=False).decode

    def __init__(self, raw: bytes) -> None:
        body = decoded(self.decode, raw)
        limit = body.max_completion_tokens
        if limit is not None:
            self.limit_name = "max_completion_tokens"
        super().__init__(body, body.max_tokens if limit is None else limit)
        if not body.messages:
            raise bad_request("You must provide at least one message.", param="messages")
        self.user_text, self.prompt = read_messages(body.messages)
        self.prompt_tokens = count_tokens(self.prompt)
        self.draft = Draft(self.user_text, body, self.limit)
        self.drafts = [self.draft] * self.choices
        self.measure()

    def answer(self, request_id: str, model: str) -> bytes:
        """Write the whole answer."""
        draft = self.draft
        message = {
            "role": "assistant",
            "content": draft.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        }
        choices = [
            {
                "index": index,
                "message": message,
                "logprobs": None,
                "finish_reason": draft.finish_reason,
                "stop_reason": None,
                "token_ids": None,
                "routed_experts": None,
            }
            for index in range(self.choices)
        ]
        return encode(
            {
                "id": request_id,
                "object": "chat.completion",
                "created": int(time.time()),
                "model": model,
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": self.usage(),
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "prompt_text": None,
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def events(self, request_id: str, model: str) -> Iterator[tuple[int, bytes]]:
        """Give the role, the text token by token, the end, the usage where it was asked for, and [DONE]."""
        head = {
            "id": request_id,
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": model,
        }

        def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
            choices = [
                {
                    "index": index,
                    "delta": delta,
                    "logprobs": None,
                    "finish_reason": finish_reason,
                }
                for index in range(self.choices)
            ]
            # One event for each choice, as vLLM writes them.
            return b"".join(_event({**head, "choices": [choice]}) for choice in choices)

        yield 0, chunk({"role": "assistant", "content": ""})
        for number, piece in enumerate(self.draft.pieces()):
            # The first token is what the latency waited for.
            yield min(number, 1), chunk({"content": piece})
        yield 0, chunk({"content": ""}, self.draft.finish_reason)
        if self.include_usage:
            yield 0, _event({**head, "choices": [], "usage": self.usage(), "system_fingerprint": FINGERPRINT})
        yield 0, b"data: [DONE]\n\n"


class Completion(Generation):
    """POST /v1/completions."""

    id_prefix = "cmpl"
    decode = msgspec.json.Decoder(CompletionBody, strict=False).decode

    def __init__(self, raw: bytes) -> None:
        body = decoded(self.decode, raw)
        super().__init__(body, COMPLETION_MAX_TOKENS if body.max_tokens is None else body.max_tokens)
        texts, self.prompt_tokens = read_inputs(body.prompt, "prompt")
        self.prompt = self.user_text = "\n".join(texts)
        # Choices of one prompt follow each other.
        self.drafts = [draft for text in texts for draft in [Draft(text, body, self.limit)] * self.choices]
        self.measure()

    def answer(self, request_id: str, model: str) -> bytes:
        """Write the whole answer."""
        choices = [
            {
                "index": index,
                "text": draft.text,
                "logprobs": None,
                "finish_reason": draft.finish_reason,
                "stop_reason": None,
                "token_ids": None,
                "prompt_logprobs": None,
                "prompt_token_ids": None,
                "routed_experts": None,
            }
            for index, draft in enumerate(self.drafts)
        ]
        return encode(
            {
                "id": request_id,
                "object": "text_completion",
                "created": int(time.time()),
                "model": model,
                "choices": choices,
                "service_tier": None,
                "system_fingerprint": FINGERPRINT,
                "usage": self.usage(),
                "kv_transfer_params": None,
                "ec_transfer_params": None,
                "metrics": None,
            }
        )

    def events(self, request_id: str, model: str) -> Iterator[tuple[int, bytes]]:
        """Give the texts token by token, the usage where it was asked for, and [DONE]."""
        head = {"id": request_id, "object": "text_completion", "created": int(time.time()), "model": model}
        texts = [list(draft.pieces()) for draft in self.drafts]
        for step in range(self.steps):
            chunks = []
            for index, (draft, pieces) in enumerate(zip(self.drafts, texts, strict=True)):
                if step < len(pieces):
                    end = draft.finish_reason if step == len(pieces) - 1 else None
                    choice = {
                        "index": index,
                        "text": pieces[step],
                        "logprobs": None,
                        "finish_reason": end,
                        "stop_reason": None,
                    }
                    chunks.append(_event({**head, "choices": [choice]}))
            yield min(step, 1), b"".join(chunks)
        if self.include_usage:
            yield 0, _event({**head, "choices": [], "usage": self.usage(), "system_fingerprint": FINGERPRINT})
        yield 0, b"data: [DONE]\n\n"


class Response(Generation):
    """POST /v1/responses."""

    id_prefix = "resp"
    limit_name = "max_output_tokens"
    decode = msgspec.json.Decoder(ResponsesBody, strict=False).decode

    def __init__(self, raw: bytes) -> None:
        body = decoded(self.decode, raw)
        super().__init__(body, body.max_output_tokens)
        if isinstance(body.input, str):
            self.user_text = self.prompt = body.input
        else:
            messages = [Message(item.role, item.content) for item in body.input if item.role is not None]
            self.user_text, self.prompt = read_messages(messages)
        if body.instructions:
            self.prompt = f"{body.instructions}\n{self.prompt}"
        self.body = body
        self.choices = 1
        self.prompt_tokens = count_tokens(self.prompt)
        self.draft = Draft(self.user_text, body, self.limit)
        self.drafts = [self.draft]
        self.measure()

    def answer(self, request_id: str, model: str) -> bytes:
        """Write the whole answer."""
        return encode(self._response(request_id, model, done=True))

    def events(self, request_id: str, model: str) -> Iterator[tuple[int, bytes]]:
        """Give the named events of the responses API; there is no [DONE]."""
        numbers = iter(range(self.steps + 8))

        def event(kind: str, **fields: object) -> bytes:
            data = encode({"type": kind, "sequence_number": next(numbers), **fields})
            return b"event: %s\ndata: %s\n\n" % (kind.encode(), data)

        started = self._response(request_id, model, done=False)
        item = self._item(request_id)
        where: dict[str, object] = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        text = self.draft.text
        yield 0, event("response.created", response=started)
        yield 0, event("response.in_progress", response=started)
        yield (
            0,
            event("response.output_item.added", output_index=0, item={**item, "content": [], "status": "in_progress"}),
        )
        yield 0, event("response.content_part.added", **where, part=part)
        for number, piece in enumerate(self.draft.pieces()):
            yield min(number, 1), event("response.output_text.delta", **where, delta=piece, logprobs=[])
        yield 0, event("response.output_text.done", **where, text=text, logprobs=[])
        yield 0, event("response.content_part.done", **where, part={**part, "text": text})
        yield 0, event("response.output_item.done", output_index=0, item=item)
        yield 0, event("response.completed", response=self._response(request_id, model, done=True))

    def _item(self, request_id: str) -> dict[str, object]:
        content: dict[str, object] = {
            "type": "output_text",
            "text": self.draft.text,
            "annotations": [],
            "logprobs": None,
        }
        return {
            "id": f"msg_{request_id[-16:]}",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [content],
        }

    def _response(self, request_id: str, model: str, *, done: bool) -> dict[str, object]:
        cut = done and self.draft.finish_reason == "length"
        body = self.body
        usage = {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }
        return {
            "id": request_id,
            "created_at": int(time.time()),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "metadata": None,
            "model": model,
            "object": "response",
            "output": [self._item(request_id)] if done else [],
            "parallel_tool_calls": True,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "background": False,
            "max_output_tokens": self.limit,
            "max_tool_calls": None,
            "previous_response_id": None,
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": "in_progress" if not done else "incomplete" if cut else "completed",
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": usage if done else None,
            "user": None,
        }


def _event(data: dict[str, object]) -> bytes:
    return b"data: %s\n\n" % encode(data)
