"""Embeddings: a text to one vector, made of its tokens' hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlos.errors import RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.gguf_text import encoder_of
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, require_finite, texts_of
from mlos.tasks.task import SinglePass
from mlos.tasks.text import states_of


def _mean(hidden: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = (hidden * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1e-9)
    return mean


def _first(hidden: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[np.float64]:
    return hidden[:, 0]


def _largest(hidden: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[np.float64]:
    largest: NDArray[np.float64] = np.where(mask > 0, hidden, -1e9).max(axis=1)
    return largest


def _unchanged(vectors: NDArray[np.float64], mask: NDArray[np.float64]) -> NDArray[np.float64]:
    return vectors


_MODEL = "model"
_POOLING = {"mean": _mean, "cls": _first, "max": _largest, _MODEL: _unchanged}
"""From hidden states (batch, tokens, dimensions) and their mask (batch, tokens, 1) to vectors."""


class Embeddings(SinglePass):
    """Sentence embeddings, pooled over the attention mask as sentence-transformers does it.

    It reads from ``manifest.preprocessing["embeddings"]``: ``output`` (the tensor that they are made of, by
    default ``last_hidden_state``), ``pooling`` (``mean``, the default, ``cls`` for the first token, ``max`` for
    the largest value of each dimension, ``model`` where the output is one vector for each text already),
    ``normalize`` (are vectors scaled to length 1? default false), ``lower_case`` (are texts lower-cased before
    the tokenizer has them? default false), ``prompts`` (what may be put before a text, by name) with ``prompt``
    (the name of the one that is unasked, or null), and what :class:`~mlos.tasks.text.TextEncoder` reads. The
    parameter ``normalize`` of a request overrides the package's, ``prompt_name`` its ``prompt``. One text is
    answered with ``{"embedding": [...], "dimensions": n}``, several with a list of those.
    """

    name: ClassVar[str] = "embeddings"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = encoder_of(folder, manifest, self.name)
        self._max_text_bytes = limits.max_text_bytes
        options = self._encoder.options
        pooling = options.get("pooling", "mean")
        if pooling not in _POOLING:
            raise RefusedError(
                f"the package pools its embeddings by {pooling!r}, which is not known here",
                field="preprocessing.embeddings.pooling",
                expected=", ".join(_POOLING),
                got=repr(pooling),
            )
        self._pool = _POOLING[pooling]
        self._lower_case = bool(options.get("lower_case", False))
        self._prompts: dict[str, str] = options.get("prompts") or {}
        self._prompt: str | None = options.get("prompt")
        self._output = states_of(manifest, options, axes=2 if pooling == _MODEL else 3)
        self._normalize = bool(options.get("normalize", False))
        known: dict[str, Any] = {"normalize": ("true or false", lambda value: isinstance(value, bool))}
        if self._prompts:
            names = f"one of {', '.join(self._prompts)}"
            known |= {"prompt_name": (names, lambda value: isinstance(value, str) and value in self._prompts)}
        self._known: Known = known

    def accepts(self, request: InferenceRequest) -> bool:
        """Every text has an embedding."""
        return request.text is not None or request.texts is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Tokenise; the texts of one request become one padded batch."""
        texts = texts_of(request, self.name, self._max_text_bytes)
        parameters = check_parameters(request, self._known)
        normalize = parameters.get("normalize", self._normalize)
        prompt = parameters.get("prompt_name", self._prompt)
        if prompt is not None:
            texts = [self._prompts[prompt] + text for text in texts]
        if self._lower_case:
            texts = [text.lower() for text in texts]
        inputs = self._encoder.encode(texts)
        return Prepared(
            inputs,
            (self._output,),
            (request.text is not None, normalize),
            padding=self._encoder.padding,
            tokens={"prompt": int(inputs["attention_mask"].sum())},
        )

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Pool (batch, tokens, dimensions) over the tokens of each text.

        A mean is sum(h * mask) / max(sum(mask), 1e-9), the length at least 1e-12, as in the framework.
        """
        single, normalize = prepared.context
        hidden = require_finite(self._output, computed[self._output]).astype(np.float64)
        mask = prepared.inputs["attention_mask"][:, :, None].astype(np.float64)
        vectors = self._pool(hidden, mask)
        if normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        rows = vectors.astype(np.float32).tolist()
        results = [{"embedding": row, "dimensions": len(row)} for row in rows]
        return results[0] if single else results
