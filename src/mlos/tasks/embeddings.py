"""Embeddings: a text to one vector, the mean of its tokens' hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mlos.errors import RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.prepared import Limits, Prepared, check_parameters, require_finite, texts_of
from mlos.tasks.task import SinglePass
from mlos.tasks.text import TextEncoder

_OUTPUT = "last_hidden_state"


class Embeddings(SinglePass):
    """Sentence embeddings by mean pooling over the attention mask, as sentence-transformers does it.

    It reads from ``manifest.preprocessing["embeddings"]``: ``pooling`` (only ``mean``), ``normalize`` (are
    vectors scaled to length 1? default false), and what :class:`~mlos.tasks.text.TextEncoder` reads. The
    parameter ``normalize`` of a request overrides the package's. One text is answered with
    ``{"embedding": [...], "dimensions": n}``, several with a list of those.
    """

    name: ClassVar[str] = "embeddings"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = TextEncoder(folder, manifest, self.name)
        self._max_text_bytes = limits.max_text_bytes
        pooling = self._encoder.options.get("pooling", "mean")
        if pooling != "mean":
            raise RefusedError(
                f"the package pools its embeddings by {pooling!r}, which is not known here",
                field="preprocessing.embeddings.pooling",
                expected="mean",
                got=repr(pooling),
            )
        if all(spec.name != _OUTPUT for spec in manifest.artifact.outputs):
            raise RefusedError(f"the model gives no {_OUTPUT} to make embeddings of", field=_OUTPUT)
        self._normalize = bool(self._encoder.options.get("normalize", False))

    def accepts(self, request: InferenceRequest) -> bool:
        """Every text has an embedding."""
        return request.text is not None or request.texts is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Tokenise; the texts of one request become one padded batch."""
        texts = texts_of(request, self.name, self._max_text_bytes)
        known = {"normalize": ("true or false", lambda value: isinstance(value, bool))}
        normalize = check_parameters(request, known).get("normalize", self._normalize)
        return Prepared(self._encoder.encode(texts), (_OUTPUT,), (request.text is not None, normalize))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Pool (batch, tokens, dimensions) over the tokens of each text.

        The mean is sum(h * mask) / max(sum(mask), 1e-9), the length at least 1e-12, as in the framework.
        """
        single, normalize = prepared.context
        hidden = require_finite(_OUTPUT, computed[_OUTPUT]).astype(np.float64)
        mask = prepared.inputs["attention_mask"][:, :, None].astype(np.float64)
        vectors = (hidden * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1e-9)
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        rows = vectors.astype(np.float32).tolist()
        results = [{"embedding": row, "dimensions": len(row)} for row in rows]
        return results[0] if single else results
