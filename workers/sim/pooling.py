"""Answer what pooling models answer: embeddings, scores, rankings; and /tokenize, which needs no model at all."""

from __future__ import annotations

import time

import msgspec

from . import vectors
from .answers import Job, encode
from .bodies import (
    TOKEN_CHARS,
    EmbeddingBody,
    RerankBody,
    ScoreBody,
    TokenizeBody,
    count_tokens,
    decoded,
    read_inputs,
    read_messages,
)
from .refusals import bad_request, bad_value


class Embedding(Job):
    """POST /v1/embeddings."""

    id_prefix = "embd"
    decode = msgspec.json.Decoder(EmbeddingBody, strict=False).decode

    def __init__(self, raw: bytes) -> None:
        body = decoded(self.decode, raw)
        if body.encoding_format not in ("float", "base64"):
            raise bad_value(
                "encoding_format must be 'float' or 'base64'.", param="encoding_format", value=body.encoding_format
            )
        self.model = body.model
        self.priority = body.priority
        self.base64 = body.encoding_format == "base64"
        self.texts, self.prompt_tokens = read_inputs(body.input, "input")
        self.prompt = self.user_text = "\n".join(self.texts)

    def answer(self, request_id: str, model: str) -> bytes:
        """Write one vector for each input."""
        found = [vectors.embed(text) for text in self.texts]
        data = [
            {"index": index, "object": "embedding", "embedding": vectors.to_base64(vector) if self.base64 else vector}
            for index, vector in enumerate(found)
        ]
        return encode(
            {
                "id": request_id,
                "object": "list",
                "created": int(time.time()),
                "model": model,
                "data": data,
                "usage": {**self.usage(), "prompt_tokens_details": None},
            }
        )


class Score(Job):
    """POST /v1/score: how near each pair of texts is."""

    id_prefix = "score"
    decode = msgspec.json.Decoder(ScoreBody, strict=False).decode

    def __init__(self, raw: bytes) -> None:
        body = decoded(self.decode, raw)
        self.model = body.model
        self.priority = body.priority
        pairs = (
            (body.queries, body.documents),
            (body.queries, body.items),
            (body.data_1, body.data_2),
            (body.text_1, body.text_2),
        )
        given = next(((left, right) for left, right in pairs if left is not None and right is not None), None)
        if given is None:
            raise bad_request("Both sides are required: queries and documents, or text_1 and text_2.", param="queries")
        lefts, rights = _as_list(given[0]), _as_list(given[1])
        if not lefts or not rights or len(lefts) not in (1, len(rights)):
            raise bad_request("Input lengths must be either 1:1, 1:N or N:N")
        if len(lefts) == 1:
            lefts = lefts * len(rights)
        self.pairs = list(zip(lefts, rights, strict=True))
        self.prompt = self.user_text = "\n".join(f"{left}\n{right}" for left, right in self.pairs)
        self.prompt_tokens = count_tokens(self.prompt)

    def answer(self, request_id: str, model: str) -> bytes:
        """Write one score for each pair."""
        data = [
            {"index": index, "object": "score", "score": vectors.nearness(left, right)}
            for index, (left, right) in enumerate(self.pairs)
        ]
        return encode(
            {
                "id": request_id,
                "object": "list",
                "created": int(time.time()),
                "model": model,
                "data": data,
                "usage": {**self.usage(), "prompt_tokens_details": None},
            }
        )


class Rerank(Job):
    """POST /v1/rerank: documents, the nearest to the query first."""

    id_prefix = "score"
    decode = msgspec.json.Decoder(RerankBody, strict=False).decode

    def __init__(self, raw: bytes) -> None:
        body = decoded(self.decode, raw)
        if body.top_n < 0:
            raise bad_value("top_n must be greater than or equal to 0.", param="top_n", value=body.top_n)
        self.model = body.model
        self.priority = body.priority
        self.query = body.query
        self.documents = _as_list(body.documents)
        if not self.documents:
            raise bad_request("At least one document is required.", param="documents")
        self.top_n = body.top_n or len(self.documents)
        self.user_text = body.query
        self.prompt = "\n".join([body.query, *self.documents])
        self.prompt_tokens = count_tokens(self.prompt)

    def answer(self, request_id: str, model: str) -> bytes:
        """Write the documents in their order."""
        scores = [vectors.nearness(self.query, document) for document in self.documents]
        order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: self.top_n]
        results = [
            {
                "index": index,
                "document": {"text": self.documents[index], "multi_modal": None},
                "relevance_score": scores[index],
            }
            for index in order
        ]
        usage = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
        return encode({"id": request_id, "model": model, "usage": usage, "results": results})


_decode_tokenize = msgspec.json.Decoder(TokenizeBody, strict=False).decode


def tokenize(raw: bytes, max_model_len: int) -> tuple[str | None, bytes]:
    """Return the model asked for and the answer to POST /tokenize."""
    body = decoded(_decode_tokenize, raw)
    if body.prompt is not None:
        text = body.prompt
    elif body.messages is not None:
        text = read_messages(body.messages)[1]
    else:
        raise bad_request("Either prompt or messages is required.", param="prompt")
    pieces = [text[start : start + TOKEN_CHARS] for start in range(0, len(text), TOKEN_CHARS)]
    answer = {
        "count": len(pieces),
        "max_model_len": max_model_len,
        "tokens": [vectors.token_id(piece) for piece in pieces],
        "token_strs": pieces if body.return_token_strs else None,
    }
    return body.model, encode(answer)


def _as_list(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else value or []
