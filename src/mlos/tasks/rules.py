"""Rules of generation: what is done to the scores of the next token before one of them is chosen.

Each rule is what transformers 5 does under the same name (its ``LogitsProcessor`` classes), and they come in
its order. A rule takes the sequences so far, shape (rows, length), the token that an answer begins with
included, and the scores of what may follow, float32 (rows, vocabulary); it gives new scores and leaves those
alone. Scores are logits in a greedy search and log probabilities in a beam search, which after the rules are no
distribution any more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Scores: TypeAlias = NDArray[np.float32]
Sequences: TypeAlias = NDArray[np.int64]
Rule: TypeAlias = Callable[[Sequences, Scores], Scores]

_BANNED = np.float32(-np.inf)


@dataclass(frozen=True)
class Rules:
    """Which rules hold, by the framework's names for them, each with the value that means nothing.

    ``min_length`` counts the token that an answer begins with, ``min_new_tokens`` does not, and where it is
    given the other counts for nothing.
    """

    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_length: int = 0
    min_new_tokens: int | None = None
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()

    def of(self, ends: Collection[int], most: int) -> tuple[Rule, ...]:
        """Those that do something, in the framework's order, for answers of at most ``most`` tokens."""
        rules: list[Rule] = []
        if self.repetition_penalty != 1.0:
            rules.append(repetition_penalty(self.repetition_penalty))
        if self.no_repeat_ngram_size > 0:
            rules.append(no_repeat_ngram(self.no_repeat_ngram_size))
        least = self.min_length if self.min_new_tokens is None else 1 + self.min_new_tokens
        if least > 1:
            rules.append(min_length(least, ends))
        if self.forced_bos_token_id is not None:
            rules.append(forced_at(1, [self.forced_bos_token_id]))
        if self.forced_eos_token_id:
            rules.append(forced_at(most, self.forced_eos_token_id))
        return tuple(rules)


def apply(rules: Iterable[Rule], sequences: Sequences, scores: Scores) -> Scores:
    """What one rule after the other makes of ``scores``."""
    for rule in rules:
        scores = rule(sequences, scores)
    return scores


def repetition_penalty(penalty: float) -> Rule:
    """Tokens that were there before become less likely: a score above 0 is divided, one below multiplied.

    After Keskar et al., "CTRL", 2019, equation of section 4.1, with the sign taken into account.
    """
    factor = np.float32(penalty)

    def rule(sequences: Sequences, scores: Scores) -> Scores:
        found = np.take_along_axis(scores, sequences, axis=1)
        penalised = scores.copy()
        np.put_along_axis(penalised, sequences, np.where(found < 0, found * factor, found / factor), axis=1)
        return penalised

    return rule


def no_repeat_ngram(size: int) -> Rule:
    """No ``size`` tokens in a row come a second time."""

    def rule(sequences: Sequences, scores: Scores) -> Scores:
        length = sequences.shape[1]
        if length < size:
            return scores
        windows = np.lib.stride_tricks.sliding_window_view(sequences, size, axis=1)
        begun = sequences[:, None, length + 1 - size :]  # empty for single tokens, which all windows begin with
        rows, places = np.nonzero((windows[..., :-1] == begun).all(axis=-1))
        allowed = scores.copy()
        allowed[rows, windows[rows, places, -1]] = _BANNED
        return allowed

    return rule


def min_length(length: int, ends: Collection[int]) -> Rule:
    """No end before a sequence has ``length`` tokens, the one it begins with included."""
    ending = list(ends)

    def rule(sequences: Sequences, scores: Scores) -> Scores:
        if sequences.shape[1] >= length:
            return scores
        allowed = scores.copy()
        allowed[:, ending] = _BANNED
        return allowed

    return rule


def forced_at(length: int, tokens: Collection[int]) -> Rule:
    """After ``length`` tokens comes one of ``tokens`` and nothing else.

    After the one that an answer begins with it is the forced beginning, before the last that there is room for
    the forced end.
    """
    forced = list(tokens)

    def rule(sequences: Sequences, scores: Scores) -> Scores:
        if sequences.shape[1] != length:
            return scores
        allowed = np.full_like(scores, _BANNED)
        allowed[:, forced] = 0
        return allowed

    return rule
