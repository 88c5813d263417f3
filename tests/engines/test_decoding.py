"""Sequences of a small T5 that share the decoder's steps: each as if it were alone (F25)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.small import Small
from tests.tiny_t5 import TinyT5, tiny_t5

from mlos.engines import Cohorts, EncoderDecoder
from mlos.engines.decoding import MASK, Cache, Decoding
from mlos.errors import DeadlineError, MlosError, WorkerError
from mlos.model import Tensors

START, STEPS = 0, 6
LENGTHS = (5, 2, 9, 7)
"""Of four sources."""


def unhurried() -> None:
    """Everybody waits."""


def patience_for(runs: int) -> Callable[[], None]:
    """Nobody waits any more after so many runs of encoder and decoder."""
    left = runs

    def check() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise DeadlineError("nobody waits")

    return check


@pytest.fixture(scope="module")
def made(small: Small) -> TinyT5:
    return tiny_t5(small)


@pytest.fixture(scope="module")
def engine(made: TinyT5) -> EncoderDecoder:
    return made.opened()


@pytest.fixture(scope="module")
def sources(made: TinyT5) -> list[Tensors]:
    random = np.random.default_rng(5)
    rows = [random.integers(5, made.model.config.vocab_size, (1, length)) for length in LENGTHS]
    return [{"input_ids": row, MASK: np.ones_like(row)} for row in rows]


@pytest.fixture(scope="module")
def alone(engine: EncoderDecoder, sources: list[Tensors]) -> list[list[int]]:
    """What each is answered with by itself, by steps that a margin decides."""
    found = []
    for source in sources:
        decoding, tokens = engine.begin(source), [START]
        for _ in range(STEPS):
            scores = engine.step(decoding, np.array([[tokens[-1]]]))[0, -1]
            second, first = np.partition(scores, -2)[-2:]
            assert first - second > 1e-4
            tokens.append(int(scores.argmax()))
        found.append(tokens[1:])
    assert len({tuple(tokens) for tokens in found}) == len(found)
    return found


class Counting:
    """The engine, its runs counted; it fails on batches that hold a source of ``unlucky`` tokens."""

    def __init__(self, engine: EncoderDecoder, unlucky: int = -1, undecodable: int = -1) -> None:
        self._engine, self._unlucky, self._undecodable = engine, unlucky, undecodable
        self.runs: list[tuple[int, int]] = []
        """Rows of each run of the decoder, and how long their sources were made."""

    def begin(self, inputs: Tensors, copies: int = 1) -> Decoding:
        if inputs[MASK].shape[1] == self._unlucky:
            raise WorkerError("the encoder finds no room")
        return self._engine.begin(inputs, copies)

    def following(self, decoding: Decoding, tokens: NDArray[Any]) -> tuple[NDArray[Any], Cache]:
        self.runs.append(decoding.fixed[MASK].shape)
        if self._undecodable in decoding.fixed[MASK].sum(axis=1):
            raise WorkerError("the decoder finds no room")
        return self._engine.following(decoding, tokens)


def likeliest(scores: NDArray[Any]) -> int:
    return int(scores.argmax())


def joined(cohorts: Cohorts, source: Tensors) -> int:
    place = cohorts.join(source, START, likeliest)
    assert place is not None
    return place


def steps(
    cohorts: Cohorts, count: int, check: Callable[[], None] = unhurried
) -> dict[int, list[int | MlosError]]:
    """What each place has had after so many steps."""
    had: dict[int, list[int | MlosError]] = {}
    for _ in range(count):
        for place, outcome in cohorts.step(check).items():
            had.setdefault(place, []).append(outcome)
    return had


def test_those_that_join_together_are_one_run_a_step_and_each_as_alone(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]]
) -> None:
    counting = Counting(engine)
    cohorts = Cohorts(counting, 4)
    places = [joined(cohorts, source) for source in sources]
    assert (cohorts.free, cohorts.join(sources[0], START, likeliest)) == (0, None)
    had = steps(cohorts, STEPS)
    assert [had[place] for place in places] == alone
    assert counting.runs == [(4, max(LENGTHS))] * STEPS


def test_who_joins_later_has_all_its_tokens_too(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]]
) -> None:
    counting = Counting(engine)
    cohorts = Cohorts(counting, 4)
    early = joined(cohorts, sources[0])
    before = steps(cohorts, 2)
    late = [joined(cohorts, source) for source in sources[1:]]
    after = steps(cohorts, STEPS)
    assert (before[early] + after[early])[:STEPS] == alone[0]
    assert [after[place] for place in late] == alone[1:]
    assert [rows for rows, _ in counting.runs] == [1, 1, *[1, 3] * STEPS]


def test_who_leaves_takes_its_row_and_its_padding_along(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]]
) -> None:
    counting = Counting(engine)
    cohorts = Cohorts(counting, 4)
    places = [joined(cohorts, source) for source in sources]
    before = steps(cohorts, 3)
    cohorts.leave(places[2])
    assert cohorts.free == 1
    after = steps(cohorts, STEPS - 3)
    assert counting.runs[3:] == [(3, 7)] * (STEPS - 3)
    assert places[2] not in after
    for number in (0, 1, 3):
        assert before[places[number]] + after[places[number]] == alone[number]
    again = joined(cohorts, sources[2])
    assert again == places[2]
    assert steps(cohorts, STEPS)[again] == alone[2]
    for place in places:
        cohorts.leave(place)
    assert (cohorts.free, cohorts.step(unhurried)) == (4, {})


def test_who_leaves_before_its_first_step_costs_nothing(engine: EncoderDecoder, sources: list[Tensors]) -> None:
    counting = Counting(engine)
    cohorts = Cohorts(counting, 2)
    cohorts.leave(joined(cohorts, sources[0]))
    assert (cohorts.free, cohorts.step(unhurried), counting.runs) == (2, {}, [])


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_of_a_step_that_is_given_up_nothing_is_kept(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]], patience: int
) -> None:
    """It is given up before the first run, or after one, two or three of encoder and decoder."""
    cohorts = Cohorts(engine, 4)
    early = joined(cohorts, sources[0])
    before = steps(cohorts, 2)
    late = [joined(cohorts, source) for source in sources[1:3]]
    with pytest.raises(DeadlineError):
        cohorts.step(patience_for(patience))
    after = steps(cohorts, STEPS)
    assert (before[early] + after[early])[:STEPS] == alone[0]
    assert [after[place] for place in late] == alone[1:3]


def test_where_the_decoder_fails_on_one_the_others_go_on(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]]
) -> None:
    counting = Counting(engine, undecodable=LENGTHS[2])
    cohorts = Cohorts(counting, 4)
    places = [joined(cohorts, source) for source in sources]
    first = cohorts.step(unhurried)
    assert isinstance(first[places[2]], WorkerError)
    cohorts.leave(places[2])
    after = steps(cohorts, STEPS - 1)
    for number in (0, 1, 3):
        assert [first[places[number]], *after[places[number]]] == alone[number]
    assert counting.runs[-1] == (3, 7)  # one cohort again


def test_to_leave_takes_no_memory(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cohorts = Cohorts(engine, 4)
    places = [joined(cohorts, source) for source in sources]
    before = steps(cohorts, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Decoding, "only", exhausted)
        patch.setattr(Decoding, "joined", exhausted)
        for place in places[:2]:
            cohorts.leave(place)
    after = steps(cohorts, STEPS - 2)
    for number in (2, 3):
        assert before[places[number]] + after[places[number]] == alone[number]


def exhausted(*_: Any) -> Any:
    raise MemoryError


def test_without_memory_for_one_batch_each_is_computed_by_itself(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(engine)
    cohorts = Cohorts(counting, 4)
    places = [joined(cohorts, source) for source in sources[:3]]
    monkeypatch.setattr(Decoding, "joined", exhausted)
    had = steps(cohorts, STEPS)
    assert [had[place] for place in places] == alone[:3]
    assert {rows for rows, _ in counting.runs} == {1}


def test_a_bug_that_one_answer_finds_costs_that_one(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]]
) -> None:
    def wrong(scores: NDArray[Any]) -> int:
        raise IndexError("out of bounds")

    cohorts = Cohorts(engine, 4)
    good = joined(cohorts, sources[0])
    bad = cohorts.join(sources[1], START, wrong)
    assert bad is not None
    first = cohorts.step(unhurried)
    assert isinstance(first[bad], WorkerError)
    cohorts.leave(bad)
    assert [first[good], *steps(cohorts, STEPS - 1)[good]] == alone[0]


def test_long_sources_are_encoded_over_some_steps(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlos.engines.decoding.ENCODE_SECONDS", 0.0)
    counting = Counting(engine)
    cohorts = Cohorts(counting, 4)
    places = [joined(cohorts, source) for source in sources]
    assert set(cohorts.step(unhurried)) == {places[0]}
    assert set(cohorts.step(unhurried)) == set(places[:2])
    had = steps(cohorts, STEPS)
    assert had[places[2]] == alone[2]
    assert had[places[3]] == alone[3][: STEPS - 1]


def test_where_the_encoder_fails_on_one_the_others_go_on(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]]
) -> None:
    cohorts = Cohorts(Counting(engine, unlucky=LENGTHS[1]), 4)
    places = [joined(cohorts, source) for source in sources]
    first = cohorts.step(unhurried)
    assert isinstance(first[places[1]], WorkerError)
    cohorts.leave(places[1])
    after = steps(cohorts, STEPS - 1)
    assert [[first[places[number]], *after[places[number]]] for number in (0, 2, 3)] == [
        alone[number] for number in (0, 2, 3)
    ]
    assert cohorts.free == 1


def test_the_encoder_s_error_outlives_a_step_that_is_given_up(
    engine: EncoderDecoder, sources: list[Tensors], alone: list[list[int]]
) -> None:
    cohorts = Cohorts(Counting(engine, unlucky=LENGTHS[1]), 4)
    failing, left, other = (joined(cohorts, sources[number]) for number in (1, 1, 0))
    with pytest.raises(DeadlineError):
        cohorts.step(patience_for(2))
    cohorts.leave(left)
    had = steps(cohorts, STEPS)
    assert [type(outcome) for outcome in had[failing]] == [WorkerError]
    assert (left in had, had[other]) == (False, alone[0])
