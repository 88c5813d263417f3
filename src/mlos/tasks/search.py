"""Decoding: how tokens are chosen from an encoder-decoder's logits, greedily or by a beam of candidates.

Both choose what transformers 5 chooses, token for token: its ``_sample`` without sampling, and its
``_beam_search`` without sampling. They know no model: whoever calls them computes the logits, step by step, and
says what rules hold (:mod:`mlos.tasks.rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlos.tasks.rules import Rule, apply

EarlyStopping: TypeAlias = bool | Literal["never"]
Step: TypeAlias = Callable[[NDArray[np.int64]], NDArray[Any]]
"""The logits (rows, vocabulary) after one more token (rows,) each."""
Select: TypeAlias = Callable[[NDArray[np.int64]], None]
"""Go on with these rows in this order; a row may come several times."""

_NEVER = np.float32(-1e9)
"""A score that no candidate is chosen by."""


@dataclass(frozen=True)
class Beams:
    """How a beam search goes about it.

    ``number`` sequences of each text are kept. A finished one is scored by its log probability over its
    length to the power of ``length_penalty``. ``early_stopping`` true stops once ``number`` have finished;
    false once none under way can become better at its present length; "never" once none can at any length.
    """

    number: int
    length_penalty: float = 1.0
    early_stopping: EarlyStopping = False


def greedy(
    step: Step, start: int, rows: int, ends: Collection[int], most: int, rules: Sequence[Rule] = ()
) -> Iterator[NDArray[np.int64]]:
    """The likeliest token of every row by the rules, until all rows have ended or have ``most`` tokens.

    A row that has ended goes on with its last token, which means nothing.
    """
    sequences = np.full((rows, most + 1), start, dtype=np.int64)
    tokens = sequences[:, 0]
    ended = np.zeros(rows, dtype=np.bool_)
    for length in range(1, most + 1):
        scores = apply(rules, sequences[:, :length], step(tokens).astype(np.float32, copy=False))
        tokens = np.where(ended, tokens, scores.argmax(axis=-1))
        sequences[:, length] = tokens
        yield tokens
        ended |= np.isin(tokens, list(ends))
        if ended.all():
            return


def beam_search(
    step: Step,
    select: Select,
    start: int,
    texts: int,
    ends: Collection[int],
    most: int,
    beams: Beams,
    rules: Sequence[Rule] = (),
) -> list[list[int]]:
    """The best sequence of each text, without ``start``, its end included.

    The rules take log probabilities of the next token, before those of the sequence so far are added.
    Rows of ``step`` and ``select`` are the beams of the first text, then those of the second, and so on.
    """
    number, finished = beams.number, [_Finished(beams, most) for _ in range(texts)]
    kept = max(2, 1 + len(ends)) * number  # so many that ``number`` go on even if the best of them all end
    tokens = np.full(texts * number, start, dtype=np.int64)
    scores = np.full((texts, number), _NEVER, dtype=np.float32)
    scores[:, 0] = 0  # all beams of a text begin alike: only the first may go on
    running: list[list[list[int]]] = [[[] for _ in range(number)] for _ in range(texts)]
    for length in range(1, most + 1):
        following = _log_softmax(step(tokens))
        vocabulary = following.shape[-1]
        if rules:
            following = apply(rules, _sequences(start, running), following)
        candidates = (following.reshape(texts, number, -1) + scores[:, :, None]).reshape(texts, -1)
        rows = np.empty((texts, number), dtype=np.int64)
        next_tokens = np.empty((texts, number), dtype=np.int64)
        for text in range(texts):
            best = _top(candidates[text], kept)
            log_probabilities = candidates[text][best]
            parents, chosen = np.divmod(best, vocabulary)
            ending = np.isin(chosen, list(ends)) | (length == most)
            sequences = [
                [*running[text][parent], int(token)] for parent, token in zip(parents, chosen, strict=True)
            ]
            onward = _top(log_probabilities + np.where(ending, _NEVER, np.float32(0)), number)
            finished[text].take(sequences, log_probabilities, ending, length)
            running[text] = [sequences[at] for at in onward]
            scores[text] = (log_probabilities + np.where(ending, _NEVER, np.float32(0)))[onward]
            finished[text].look_ahead(scores[text], length)
            rows[text], next_tokens[text] = parents[onward] + text * number, chosen[onward]
        if length == most or not any(each.open for each in finished):
            break
        select(rows.reshape(-1))
        tokens = next_tokens.reshape(-1)
    return [each.best for each in finished]


class _Finished:
    """The best finished sequences of one text, and whether better ones may still come."""

    def __init__(self, beams: Beams, most: int) -> None:
        self._beams, self._most = beams, most
        self._scores = np.full(beams.number, _NEVER, dtype=np.float32)
        self._done = np.zeros(beams.number, dtype=np.bool_)
        self._sequences: list[list[int]] = [[] for _ in range(beams.number)]
        self._improvable = True

    @property
    def open(self) -> bool:
        """Whether the search goes on for this text."""
        return self._improvable and not self._full

    @property
    def best(self) -> list[int]:
        """The sequence with the best score."""
        return self._sequences[0]

    @property
    def _full(self) -> bool:
        return self._beams.early_stopping is True and bool(self._done.all())

    def take(
        self,
        sequences: list[list[int]],
        log_probabilities: NDArray[np.float32],
        ending: NDArray[np.bool_],
        length: int,
    ) -> None:
        """Take in those of the candidates (best first) that end and are among the best ``number``."""
        if self._full or not self._improvable:
            return
        eligible = ending.copy()
        eligible[self._beams.number :] = False
        scores = log_probabilities / np.float32(length**self._beams.length_penalty)
        merged = np.concatenate([self._scores, np.where(eligible, scores, scores + _NEVER)])
        done = np.concatenate([self._done, eligible])
        every = [*self._sequences, *sequences]
        best = _top(merged, self._beams.number)
        self._scores, self._done = merged[best], done[best]
        self._sequences = [every[at] for at in best]

    def look_ahead(self, running: NDArray[np.float32], length: int) -> None:
        """Judge by the best score under way whether a better sequence may still come."""
        penalty = self._beams.length_penalty
        never = self._beams.early_stopping == "never"
        reached = self._most if never and penalty > 0 else length
        possible = running[0] / np.float32(reached**penalty)
        worst = np.where(self._done, self._scores.min(), _NEVER)
        self._improvable &= bool((possible > worst).any())


def _sequences(start: int, running: list[list[list[int]]]) -> NDArray[np.int64]:
    """What runs of all texts, each behind the token it begins with: shape (rows, length)."""
    return np.array([[start, *tokens] for text in running for tokens in text], dtype=np.int64)


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    shifted = logits.astype(np.float32) - logits.max(axis=-1, keepdims=True).astype(np.float32)
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result


def _top(values: NDArray[np.float32], number: int) -> NDArray[np.int64]:
    """Positions of the largest values, largest first; of equal ones the first."""
    if number < len(values):
        least = np.partition(values, -number)[-number]
        places = np.flatnonzero(values >= least)
    else:
        places = np.arange(len(values))
    order: NDArray[np.int64] = places[np.argsort(-values[places], kind="stable")]
    return order[:number]
