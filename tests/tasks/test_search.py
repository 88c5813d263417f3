"""Greedy and beam search choose what the framework's own choose, token for token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.small import Small
from tests.tiny_t5 import TinyT5, tiny_t5

from mlos.tasks.search import Beams, EarlyStopping, beam_search, greedy

START, END = 0, 1
WORDS = (
    *("translate", "English", "to", "German", "summarize", "the", "ship", "slowly", "left", "harbour", "a"),
    *("storm", "north", "engineer", "timed", "answer", "twice", "water", "boils", "Paris", "is", "large."),
)


@pytest.fixture(scope="module")
def made(small: Small) -> TinyT5:
    return tiny_t5(small)


class Framework:
    """The framework's model as the search asks it, so that what differs is the search's own."""

    def __init__(self, made: TinyT5, texts: list[str], copies: int = 1) -> None:
        self.source = made.tokenizer(texts, padding=True, return_tensors="pt")
        self._model, self._tokens = made.model, torch.empty(len(texts) * copies, 0, dtype=torch.int64)
        self._repeated = {
            name: self.source[name].repeat_interleave(copies, 0) for name in ("input_ids", "attention_mask")
        }

    @torch.no_grad()
    def step(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        self._tokens = torch.cat([self._tokens, torch.from_numpy(tokens.copy())[:, None]], 1)
        answer = self._model(**self._repeated, decoder_input_ids=self._tokens)
        logits: NDArray[Any] = answer.logits[:, -1].numpy()
        return logits

    def select(self, rows: NDArray[np.int64]) -> None:
        self._tokens = self._tokens[torch.from_numpy(rows)]


def texts_of(seed: int) -> list[str]:
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(WORDS, chance.integers(1, 12))) for _ in range(chance.integers(1, 4))]


def ends_of(made: TinyT5, seed: int) -> list[int]:
    """Tokens that these answers do come upon, taken for their ends: random weights seldom end by themselves."""
    inputs = made.tokenizer(texts_of(seed), padding=True, return_tensors="pt")
    written = made.model.generate(
        **{name: inputs[name] for name in ("input_ids", "attention_mask")}, max_new_tokens=12, do_sample=False
    )
    return sorted({int(row[4 + seed % 7]) for row in written} | {END})


def framework_says(
    made: TinyT5, asked: Framework, ends: list[int], most: int, **options: Any
) -> list[list[int]]:
    rows = made.model.generate(
        **{name: asked.source[name] for name in ("input_ids", "attention_mask")},
        max_new_tokens=most,
        do_sample=False,
        eos_token_id=ends,
        **options,
    ).tolist()
    return [until_end(row[1:], ends) for row in rows]


def until_end(row: list[int], ends: list[int]) -> list[int]:
    at = next((at for at, token in enumerate(row) if token in ends), len(row))
    return row[: at + 1]


@pytest.mark.parametrize("seed", range(8))
def test_greedy_is_the_frameworks(made: TinyT5, seed: int) -> None:
    texts, most = texts_of(seed), 3 + seed
    asked, ends = Framework(made, texts), ends_of(made, seed)
    steps = [tokens.tolist() for tokens in greedy(asked.step, START, len(texts), ends, most)]
    rows = [until_end(list(row), ends) for row in zip(*steps, strict=True)]
    assert rows == framework_says(made, asked, ends, most, num_beams=1)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("number", "penalty", "early"),
    [(2, 1.0, False), (4, 1.0, False), (4, 2.0, True), (3, 0.0, "never"), (4, -0.5, "never"), (5, 0.6, True)],
)
def test_a_beam_search_is_the_frameworks(
    made: TinyT5, seed: int, number: int, penalty: float, early: EarlyStopping
) -> None:
    texts, most = texts_of(seed), 3 + seed
    asked, ends = Framework(made, texts, number), ends_of(made, seed)
    beams = Beams(number, penalty, early)
    rows = beam_search(asked.step, asked.select, START, len(texts), ends, most, beams)
    options = {"num_beams": number, "length_penalty": penalty, "early_stopping": early}
    assert rows == framework_says(made, asked, ends, most, **options)


def test_a_beam_finds_what_greed_misses() -> None:
    """After token 2 every way on is unlikely; after token 3, which is less likely at first, one is certain."""
    logs = np.full((6, 6), -20.0, dtype=np.float32)
    logs[0, 2], logs[0, 3] = np.log(0.6), np.log(0.4)
    logs[2] = np.log(1 / 6)
    logs[3, 4] = 0.0
    logs[4, END] = logs[5, END] = 0.0
    state = {"last": np.zeros(2, dtype=np.int64)}

    def step(tokens: NDArray[np.int64]) -> NDArray[Any]:
        state["last"] = tokens
        return logs[tokens]

    (best,) = beam_search(step, lambda rows: None, START, 1, [END], 3, Beams(2))
    assert best == [3, 4, END]
    first = next(greedy(step, START, 1, [END], 3))
    assert first.tolist() == [2]


def test_rows_that_have_ended_wait_for_the_others() -> None:
    logs = np.full((4, 4), -9.0, dtype=np.float32)
    logs[0, 2] = logs[2, END] = logs[3, 3] = logs[END, 3] = 0.0

    def step(tokens: NDArray[np.int64]) -> NDArray[Any]:
        return logs[tokens]

    assert [tokens.tolist() for tokens in greedy(step, START, 2, [END], 9)] == [[2, 2], [END, END]]
