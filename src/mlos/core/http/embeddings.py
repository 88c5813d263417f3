"""OpenAI's embeddings. Reference: https://platform.openai.com/docs/api-reference/embeddings."""

from __future__ import annotations

import base64
from typing import Any, Literal

import msgspec
import numpy as np

from mlos.core.dataplane import Inference
from mlos.errors import WorkerError
from mlos.model import InferenceRequest


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """An embeddings request; numbers of tokens are not taken, nor shorter vectors than the model's."""

    model: str
    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class _Embedding(msgspec.Struct):
    """What the task answers for a text."""

    embedding: list[float]


def embeddings_request(asked: EmbeddingsRequest) -> InferenceRequest:
    """What the model is asked."""
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    return InferenceRequest(texts=texts, task="embeddings")


def embeddings(asked: EmbeddingsRequest, inference: Inference) -> dict[str, Any]:
    """The answer: a vector for each text, as numbers or as base64 of little-endian FP32."""
    try:
        found = msgspec.json.decode(inference.result, type=list[_Embedding])
    except msgspec.DecodeError as error:
        raise WorkerError(f"the worker of {inference.model} answered nonsense: {error}") from error
    vectors: list[list[float] | str] = [each.embedding for each in found]
    if asked.encoding_format == "base64":
        raw = [np.array(each.embedding, "<f4").tobytes() for each in found]
        vectors = [base64.b64encode(each).decode("ascii") for each in raw]
    read = inference.tokens.get("prompt", 0)
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": read, "total_tokens": read},
    }
