"""Token embeddings: a text to one vector for each of its tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.gguf_text import encoder_of
from mlos.tasks.prepared import Limits, Prepared, check_parameters, require_finite, texts_of
from mlos.tasks.task import SinglePass
from mlos.tasks.text import states_of


class TokenEmbeddings(SinglePass):
    """The last hidden state of each token, as the framework's feature-extraction pipeline answers.

    Special tokens are among them, padding is not. It reads from ``manifest.preprocessing["token-embeddings"]``
    ``output`` (the tensor of hidden states, by default ``last_hidden_state``) and what
    :class:`~mlos.tasks.text.TextEncoder` reads. One text is answered with
    ``{"tokens": [...], "embeddings": [[...], ...], "dimensions": n}``, several with a list of those. A model
    that embeds whole texts too does that where a request names no task.
    """

    name: ClassVar[str] = "token-embeddings"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = encoder_of(folder, manifest, self.name)
        self._max_text_bytes = limits.max_text_bytes
        self._output = states_of(manifest, self._encoder.options)

    def accepts(self, request: InferenceRequest) -> bool:
        """Every text has tokens."""
        return request.text is not None or request.texts is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Tokenise; the texts of one request become one padded batch."""
        texts = texts_of(request, self.name, self._max_text_bytes)
        check_parameters(request, {})
        return Prepared(
            self._encoder.encode(texts), (self._output,), request.text is not None, self._encoder.padding
        )

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """The vectors (batch, tokens, dimensions) of the tokens that are no padding."""
        hidden = require_finite(self._output, computed[self._output])
        numbers, masks = prepared.inputs["input_ids"], prepared.inputs["attention_mask"].astype(bool)
        results = [
            {
                "tokens": self._encoder.tokens(tokens[mask].tolist()),
                "embeddings": vectors[mask].tolist(),
                "dimensions": vectors.shape[-1],
            }
            for tokens, mask, vectors in zip(numbers, masks, hidden, strict=True)
        ]
        return results[0] if prepared.context else results
