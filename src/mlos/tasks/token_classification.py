"""Token classification: which of a model's labels the tokens of a text have, for example names of persons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Encoding

from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.entities import STRATEGIES, Token, entities
from mlos.tasks.labels import OUTPUT, Labels
from mlos.tasks.prepared import Known, Limits, Prepared, check_parameters, require_finite, texts_of
from mlos.tasks.task import SinglePass
from mlos.tasks.text import TextEncoder

_KNOWN: Known = {
    "aggregation_strategy": (
        f"one of {', '.join(STRATEGIES)}",
        lambda value: isinstance(value, str) and value in STRATEGIES,
    )
}


@dataclass(frozen=True)
class _Asked:
    texts: list[str]
    encodings: Sequence[Encoding]
    single: bool
    strategy: str


class TokenClassification(SinglePass):
    """The labelled tokens or entities of each text, as the framework's token-classification pipeline answers.

    It reads from ``manifest.preprocessing["token-classification"]``: ``labels``, ``unk_token`` (null where the
    tokenizer has none), and what :class:`~mlos.tasks.text.TextEncoder` reads. The parameter
    ``aggregation_strategy`` (``none``, the default, ``simple``, ``first``, ``average`` or ``max``) says how
    tokens make entities. A text is answered with a list of ``{"entity", "score", "index", "word", "start",
    "end"}`` for each token whose label is not ``O``, or of ``{"entity_group", "score", "word", "start",
    "end"}``; several texts, with a list of such lists. ``start`` and ``end`` count the text's characters.
    """

    name: ClassVar[str] = "token-classification"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = TextEncoder(folder, manifest, self.name)
        self._max_text_bytes = limits.max_text_bytes
        self._labels = Labels(self._encoder.options, manifest, self.name, scores="softmax")
        unknown = self._encoder.options.get("unk_token")
        self._unknown = None if unknown is None else self._encoder.token_id(unknown)
        # Models of words cut into marked pieces know which piece goes on a word; for others spaces tell.
        self._marked = bool(getattr(self._encoder.tokenizer.model, "continuing_subword_prefix", None))

    def accepts(self, request: InferenceRequest) -> bool:
        """Every text has tokens."""
        return request.text is not None or request.texts is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Tokenise; the texts of one request become one padded batch."""
        texts = texts_of(request, self.name, self._max_text_bytes)
        strategy = check_parameters(request, _KNOWN).get("aggregation_strategy", "none")
        encodings = self._encoder.encodings(texts)
        asked = _Asked(texts, encodings, request.text is not None, strategy)
        return Prepared(self._encoder.tensors(encodings), (OUTPUT,), asked, self._encoder.padding)

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Label the tokens of each text by ``logits``, shape (texts, tokens, labels)."""
        asked: _Asked = prepared.context
        answers = []
        rows = require_finite(OUTPUT, computed[OUTPUT])
        for text, encoding, logits in zip(asked.texts, asked.encodings, rows, strict=True):
            tokens = [
                self._token(text, encoding, at, logits[at])
                for at, (special, valid) in enumerate(
                    zip(encoding.special_tokens_mask, encoding.attention_mask, strict=True)
                )
                if valid and not special
            ]
            answers.append(entities(tokens, self._labels.names, asked.strategy, self._encoder.join))
        return answers[0] if asked.single else answers

    def _token(self, text: str, encoding: Encoding, at: int, logits: Any) -> Token:
        start, end = encoding.offsets[at]
        word, spelled = encoding.tokens[at], text[start:end]
        if self._marked:
            continues = len(word) != len(spelled)
        else:
            continues = start > 0 and " " not in text[start - 1 : start + 1]
        if encoding.ids[at] == self._unknown:
            word, continues = spelled, False
        return Token(word, self._labels.scores(logits), at, start, end, continues)
