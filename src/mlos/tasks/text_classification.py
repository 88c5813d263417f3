"""Text classification: which of a model's labels fit a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.labels import OUTPUT, Labels
from mlos.tasks.prepared import (
    Known,
    Limits,
    Prepared,
    check_parameters,
    is_whole,
    require_finite,
    texts_of,
)
from mlos.tasks.task import SinglePass
from mlos.tasks.text import TextEncoder

_MOST = 1000
_TOP_K = 5
_KNOWN: Known = {"top_k": (f"a whole number from 1 to {_MOST}", lambda value: is_whole(value, 1, _MOST))}


class TextClassification(SinglePass):
    """The best labels for each text, as the framework's text-classification pipeline answers with ``top_k``.

    It reads from ``manifest.preprocessing["text-classification"]`` what :class:`~mlos.tasks.labels.Labels` and
    :class:`~mlos.tasks.text.TextEncoder` read. The parameter ``top_k`` (1 to 1000, default 5) says how many; no
    more than there are labels are answered. A text is answered with a list of ``{"label", "score"}``, best
    first; several texts, with a list of such lists.
    """

    name: ClassVar[str] = "text-classification"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = TextEncoder(folder, manifest, self.name)
        self._max_text_bytes = limits.max_text_bytes
        self._labels = Labels(self._encoder.options, manifest, self.name)

    def accepts(self, request: InferenceRequest) -> bool:
        """Every text can be classified."""
        return request.text is not None or request.texts is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Tokenise; the texts of one request become one padded batch."""
        texts = texts_of(request, self.name, self._max_text_bytes)
        top_k = check_parameters(request, _KNOWN).get("top_k", _TOP_K)
        return Prepared(
            self._encoder.encode(texts), (OUTPUT,), (request.text is not None, top_k), self._encoder.padding
        )

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Rank the labels of each text by ``logits``, shape (texts, labels)."""
        single, top_k = prepared.context
        logits = require_finite(OUTPUT, computed[OUTPUT])
        answers = [self._labels.ranking(each, top_k) for each in logits]
        return answers[0] if single else answers
