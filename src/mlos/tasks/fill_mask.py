"""Fill-mask: which tokens a masked language model would put where a text has its mask token."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from mlos.errors import InvalidInputError, PayloadTooLargeError, RefusedError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.prepared import (
    Known,
    Limits,
    Prepared,
    check_parameters,
    is_whole,
    require_finite,
    subject,
    texts_of,
)
from mlos.tasks.scores import softmax
from mlos.tasks.task import SinglePass
from mlos.tasks.text import TextEncoder

_OUTPUT = "logits"
_MOST = 1000
_TOP_K = 5


class FillMask(SinglePass):
    """The best tokens for each mask, as the framework's fill-mask pipeline answers.

    It reads from ``manifest.preprocessing["fill-mask"]``: ``mask_token`` (required),
    ``clean_up_tokenization_spaces`` (default false), and what :class:`~mlos.tasks.text.TextEncoder` reads.
    The parameter ``top_k`` (1 to 1000, default 5) says how many; no more than the vocabulary has are answered.
    A text with one mask is answered with a list of ``{"score", "token", "token_str", "sequence"}``, best first;
    with several masks, a list of such lists; several texts, a list of the answers.
    """

    name: ClassVar[str] = "fill-mask"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._encoder = TextEncoder(folder, manifest, self.name)
        self._max_text_bytes = limits.max_text_bytes
        mask_token = self._encoder.options.get("mask_token")
        if not isinstance(mask_token, str) or not mask_token:
            raise RefusedError(
                "the package says no mask token for the task fill-mask",
                field="preprocessing.fill-mask.mask_token",
                expected="a token",
                got=repr(mask_token),
            )
        self._mask_token = mask_token
        self._mask_id = self._encoder.token_id(mask_token)
        if all(spec.name != _OUTPUT for spec in manifest.artifact.outputs):
            raise RefusedError(f"the model gives no {_OUTPUT} to fill a mask from", field=_OUTPUT)

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether any text of the request has the mask token."""
        texts = [request.text] if request.text is not None else request.texts or []
        return any(self._mask_token in text for text in texts)

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Tokenise; every text must keep a mask after it is cut at the model's length."""
        texts = texts_of(request, self.name, self._max_text_bytes)
        known: Known = {"top_k": (f"a whole number from 1 to {_MOST}", lambda value: is_whole(value, 1, _MOST))}
        top_k = check_parameters(request, known).get("top_k", _TOP_K)
        inputs = self._encoder.encode(texts)
        for number, tokens in enumerate(inputs["input_ids"]):
            if not (tokens == self._mask_id).any():
                field = "text" if subject(request) == "text" else f"texts[{number}]"
                cut = self._mask_token in texts[number]
                got = "a mask beyond it" if cut else "no mask token"
                within = f" within the first {self._encoder.options['max_length']} tokens" if cut else ""
                raise InvalidInputError(
                    f"{field} has no mask token {self._mask_token!r}{within}",
                    field=field,
                    expected=f"a text with {self._mask_token}{within}",
                    got=got,
                )
        candidates = int((inputs["input_ids"] == self._mask_id).sum()) * top_k
        if candidates > _MOST:
            raise PayloadTooLargeError(
                f"the masks of this request times top_k ask for {candidates} candidates",
                field="parameters.top_k",
                expected=f"at most {_MOST} candidates in all",
                got=str(candidates),
                hint="send fewer masks at a time, or ask for a smaller top_k",
            )
        return Prepared(inputs, (_OUTPUT,), (request.text is not None, top_k), self._encoder.padding)

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """Rank the vocabulary at each mask of ``logits``, shape (batch, tokens, vocabulary)."""
        single, top_k = prepared.context
        answers = [
            self._answer(tokens, logits, top_k)
            for tokens, logits in zip(prepared.inputs["input_ids"], computed[_OUTPUT], strict=True)
        ]
        return answers[0] if single else answers

    def _answer(self, tokens: NDArray[Any], logits: NDArray[Any], top_k: int) -> list[Any]:
        places = np.flatnonzero(tokens == self._mask_id)
        one_mask = len(places) == 1
        rankings = []
        for place in places:
            scores = softmax(require_finite(_OUTPUT, logits[place]))
            ranking = []
            for token in np.argsort(-scores, kind="stable")[:top_k].tolist():
                filled = tokens.copy()
                filled[place] = token
                kept = filled[filled != self._encoder.pad_id].tolist()
                ranking.append(
                    {
                        "score": float(scores[token]),
                        "token": token,
                        "token_str": self._encoder.decode([token], skip_special_tokens=False),
                        # Skipping the special tokens would also drop the other masks.
                        "sequence": self._encoder.decode(kept, skip_special_tokens=one_mask),
                    }
                )
            rankings.append(ranking)
        return rankings[0] if one_mask else rankings
