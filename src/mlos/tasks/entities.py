"""From labelled tokens to entities, by the rules of the framework's token-classification pipeline.

A label ``B-X`` begins an entity of the kind X, ``I-X`` goes on with it, and any other label counts as the
latter with its whole name. The ways to join tokens are those of the pipeline: ``simple`` takes each token's own
label; ``first``, ``average`` and ``max`` first agree on one label for the pieces of a word: that of its first
piece, of the mean of its pieces' scores, or of its surest piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

STRATEGIES = ("none", "simple", "first", "average", "max")
_OUTSIDE = "O"
"""The label of tokens that belong to no entity, and are not answered."""

Join: TypeAlias = Callable[[Sequence[str]], str]
"""Makes the text of a word of its tokens."""


@dataclass(frozen=True)
class Token:
    """A token or a whole word: its scores by label, and where it stands in the text, in characters.

    ``index`` is its place among the model's tokens; ``continues`` tells whether it goes on with the word of the
    token before.
    """

    word: str
    scores: NDArray[np.float64]
    index: int
    start: int
    end: int
    continues: bool

    @property
    def label(self) -> int:
        """Number of its best label."""
        return int(self.scores.argmax())


def entities(tokens: Sequence[Token], labels: Sequence[str], strategy: str, join: Join) -> list[dict[str, Any]]:
    """What a text is answered with, in the text's order."""
    if strategy == "none":
        return [
            {
                "entity": labels[token.label],
                "score": float(token.scores.max()),
                "index": token.index,
                "word": token.word,
                "start": token.start,
                "end": token.end,
            }
            for token in tokens
            if labels[token.label] != _OUTSIDE
        ]
    words = tokens if strategy == "simple" else [_word(pieces, strategy, join) for pieces in _words(tokens)]
    found = [_entity(group, labels, join) for group in _groups(words, labels)]
    return [each for each in found if each["entity_group"] != _OUTSIDE]


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(pieces: list[Token], strategy: str, join: Join) -> Token:
    if strategy == "first":
        scores = pieces[0].scores
    elif strategy == "max":
        scores = max(pieces, key=lambda piece: float(piece.scores.max())).scores
    else:
        scores = np.mean([piece.scores for piece in pieces], axis=0)
    return replace(pieces[0], word=join([piece.word for piece in pieces]), scores=scores, end=pieces[-1].end)


def _groups(words: Sequence[Token], labels: Sequence[str]) -> list[list[Token]]:
    """Neighbours of one kind, each but the first of which goes on with it."""
    groups = [[word] for word in words[:1]]
    for before, word in pairwise(words):
        begins, kind = _kind(labels[word.label])
        if kind == _kind(labels[before.label])[1] and not begins:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def _kind(label: str) -> tuple[bool, str]:
    """Whether a label begins an entity, and of which kind."""
    return (label.startswith("B-"), label[2:]) if label.startswith(("B-", "I-")) else (False, label)


def _entity(group: list[Token], labels: Sequence[str], join: Join) -> dict[str, Any]:
    return {
        "entity_group": labels[group[0].label].split("-", 1)[-1],
        "score": float(np.mean([word.scores.max() for word in group])),
        "word": join([word.word for word in group]),
        "start": group[0].start,
        "end": group[-1].end,
    }
