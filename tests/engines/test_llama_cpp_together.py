"""Sequences of a language model that share its steps and its cache: each as if it were alone (F25)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from tests.tiny_llama import TinyLlama, alone, clear, tiny_llama

from mlos.engines import Sampling, SharedLanguageModel
from mlos.engines import llama_cpp_together as together
from mlos.engines.llama_cpp import LlamaCppEngine
from mlos.engines.llama_cpp_library import library
from mlos.engines.llama_cpp_together import Together
from mlos.errors import DeadlineError, InvalidInputError, WorkerError

GREEDY = Sampling()
MARGIN = 0.02
LONG = [(7 * at) % 31000 + 3 for at in range(300)]


@pytest.fixture(scope="module")
def llama() -> TinyLlama:
    return tiny_llama()


@pytest.fixture(scope="module")
def engine(llama: TinyLlama) -> LlamaCppEngine:
    return LlamaCppEngine.open(llama.folder, llama.artifacts["F16"], 1)


@pytest.fixture(scope="module")
def prompts(engine: LlamaCppEngine) -> list[list[int]]:
    """Eight whose first tokens have no near tie, so that those written beside others are the same."""
    tried = ([1, 2860, 278, 14280, 750 + number] for number in range(100))
    found = list(itertools.islice((each for each in tried if len(clear(engine, each, 8, MARGIN)) == 8), 8))
    assert len(found) == 8
    return found


@pytest.fixture
def places(engine: LlamaCppEngine) -> Together:
    found = engine.together(8)
    assert found is not None
    return found


def go_on() -> None:
    """Somebody still waits."""


def sure(engine: LlamaCppEngine, prompt: list[int], count: int) -> list[int]:
    """The greedy tokens after ``prompt`` as far as there is no near tie."""
    tokens = clear(engine, prompt, count, MARGIN)
    assert tokens, "the first token is a near tie: choose another prompt"
    return tokens


def written(places: Together, place: int, count: int) -> list[int]:
    """Step until ``place`` has written so many tokens; whatever the others write is let go."""
    found: list[int] = []
    while len(found) < count:
        token = places.step(go_on).get(place)
        if token is not None:
            assert isinstance(token, int)
            found.append(token)
    return found


def joined(places: Together, prompt: Sequence[int], sampling: Sampling = GREEDY, most: int = 64) -> int:
    place = places.join(prompt, sampling, most)
    assert place is not None
    return place


def sizes(places: Together, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every batch that is computed from now on, as they come."""
    found: list[int] = []
    decode = places._context.decode

    def counted(batch: Any) -> bool:
        found.append(batch.n_tokens)
        return decode(batch)

    monkeypatch.setattr(places._context, "decode", counted)
    return found


def test_it_is_offered_where_answers_need_not_be_the_same_bit_by_bit(
    llama: TinyLlama, engine: LlamaCppEngine
) -> None:
    assert isinstance(engine, SharedLanguageModel)
    assert engine.together(1) is None
    exact = LlamaCppEngine.open(llama.folder, llama.artifacts["F32"], 1)
    assert exact.together(8) is None


@pytest.mark.parametrize("recurrent", ["llama_model_is_recurrent", "llama_model_is_hybrid"])
def test_a_memory_that_cannot_forget_a_part_is_not_shared(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, recurrent: str
) -> None:
    monkeypatch.setattr(library(), recurrent, lambda pointer: True)
    assert engine.together(8) is None


def test_eight_together_write_what_each_writes_alone(
    engine: LlamaCppEngine, places: Together, prompts: list[list[int]]
) -> None:
    expected = [sure(engine, prompt, 20) for prompt in prompts]
    order = {joined(places, prompt): number for number, prompt in enumerate(prompts)}
    assert places.free == 0
    found: list[list[int]] = [[] for _ in prompts]
    while any(len(tokens) < 20 for tokens in found):
        tokens = places.step(go_on)
        begun = {place for place, number in order.items() if found[number]}
        assert tokens.keys() >= begun  # who has read its prompt has a token at every step
        for place, token in tokens.items():
            assert isinstance(token, int)
            found[order[place]].append(token)
    for written, clearly in zip(found, expected, strict=True):
        assert written[: len(clearly)] == clearly


def test_one_joins_in_the_middle_and_one_that_leaves_frees_its_place(
    engine: LlamaCppEngine, places: Together, prompts: list[list[int]]
) -> None:
    first = joined(places, prompts[0])
    before = written(places, first, 3)
    second = joined(places, prompts[1])
    expected = sure(engine, prompts[1], 8)
    steps = [places.step(go_on) for _ in range(8)]
    assert all(step.keys() == {first, second} for step in steps)  # it is with them from the next step on
    assert [step[second] for step in steps][: len(expected)] == expected
    expected = sure(engine, prompts[0], 11)
    assert [*before, *(step[first] for step in steps)][: len(expected)] == expected
    places.leave(first)
    assert places.free == 7
    assert places.step(go_on).keys() == {second}


def test_a_long_prompt_is_read_in_pieces_beside_what_is_written(
    engine: LlamaCppEngine, places: Together, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]]
) -> None:
    stream = joined(places, prompts[0])
    written(places, stream, 2)
    read = sizes(places, monkeypatch)
    late = joined(places, LONG)
    steps = []
    while late not in (step := places.step(go_on)):
        steps.append(step)
    assert all(step.keys() == {stream} for step in steps)  # which has a token at every step meanwhile
    assert read == [1 + together.BESIDE] * (len(LONG) // together.BESIDE) + [1 + len(LONG) % together.BESIDE]
    expected = sure(engine, LONG, 4)
    assert [step[late], *written(places, late, 3)][: len(expected)] == expected


def test_a_short_prompt_does_not_wait_for_a_long_one(places: Together, prompts: list[list[int]]) -> None:
    stream = joined(places, prompts[0])
    written(places, stream, 1)
    long, short = joined(places, LONG), joined(places, prompts[1])
    assert short in places.step(go_on)
    assert long not in places.step(go_on)


class TestSharedPrefixes:
    def test_a_prompt_that_begins_as_a_running_one_is_read_from_where_it_differs(
        self, engine: LlamaCppEngine, places: Together, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = joined(places, LONG)
        written(places, first, 1)
        read = sizes(places, monkeypatch)
        other = [*LONG[:290], 5, 6, 7]
        second = joined(places, other)
        assert places.step(go_on).keys() == {first, second}
        assert read == [1 + 3]
        third = joined(places, LONG)  # all of it is held; its last token is computed for what comes after it
        assert third in places.step(go_on)
        assert read == [1 + 3, 2 + 1]
        places.leave(first)  # whose cells the others still need
        places.leave(third)
        expected = sure(engine, other, 8)[2:]
        assert written(places, second, 6)[: len(expected)] == expected

    def test_a_prompt_that_begins_as_one_that_has_left_is_too(
        self, engine: LlamaCppEngine, places: Together, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place = joined(places, LONG)
        answer = written(places, place, 3)
        places.leave(place)
        read = sizes(places, monkeypatch)
        turns = ([*LONG, *answer, 50, number] for number in range(60, 100))  # a conversation's next turn
        turn = next(each for each in turns if len(clear(engine, each, 4, MARGIN)) == 4)
        place = joined(places, turn)
        expected = sure(engine, turn, 4)
        assert written(places, place, 4)[: len(expected)] == expected
        assert read == [3, 1, 1, 1]  # the last token that was written was never read

    def test_other_prompts_do_not_push_out_what_is_held_while_there_are_places(
        self, places: Together, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for prompt in (LONG, *([[9, number, 9] for number in range(7)])):
            place = joined(places, prompt)
            written(places, place, 1)
            places.leave(place)
        read = sizes(places, monkeypatch)
        written(places, joined(places, LONG), 1)
        assert read == [1]


class TestRoom:
    def test_cells_are_bounded_by_the_memory_they_take(
        self, engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        layers, heads, width = 2, 2, 64
        assert together.cell_bytes(engine._model) == layers * heads * (width + width) * 2
        assert together.cells_for(engine._model, 2048, 8) == 8 * 2048
        monkeypatch.setattr(together, "MAX_CACHE_BYTES", 3000 * 1024)
        assert together.cells_for(engine._model, 2048, 8) == 3000
        monkeypatch.setattr(together, "MAX_CACHE_BYTES", 1)
        assert together.cells_for(engine._model, 2048, 8) == 2048  # one of full length always fits

    def test_who_does_not_fit_waits_until_there_is_room_and_none_is_cut_short(
        self, engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]]
    ) -> None:
        monkeypatch.setattr(together, "MAX_CACHE_BYTES", 1)
        places = engine.together(4)
        assert places is not None
        first = joined(places, LONG, most=1000)
        second = joined(places, prompts[0], most=690)
        assert places.join(prompts[1], GREEDY, 100) is None
        assert places.free == 2
        third = joined(places, prompts[1], most=40)
        written(places, third, 40)
        assert places.step(go_on).keys() == {first, second}  # the third has had all that there is room for
        places.leave(first)
        whole = joined(places, [11] * 1000, most=200)
        assert len(written(places, whole, 200)) == 200
        assert len(written(places, second, 400)) == 400

    def test_what_was_held_gives_way_when_its_cells_are_needed(
        self, engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(together, "MAX_CACHE_BYTES", 1)
        places = engine.together(4)
        assert places is not None
        for start in (10, 20, 30):
            place = joined(places, [start] * 600, most=8)
            written(places, place, 1)
            places.leave(place)
        full = joined(places, [40] * 2000, most=5000)
        assert len(written(places, full, 48)) == 48

    def test_a_prompt_that_can_never_be_continued_is_refused(self, places: Together) -> None:
        for prompt in ([], [1] * 2048):
            with pytest.raises(InvalidInputError, match="cannot be continued"):
                places.join(prompt, GREEDY, 1)
        with pytest.raises(InvalidInputError, match="there is no token 32000"):
            places.join([1, 32000], GREEDY, 1)
        assert places.free == 8


class TestSampling:
    def test_a_seeded_sequence_does_not_depend_on_its_neighbours(
        self, engine: LlamaCppEngine, prompts: list[list[int]]
    ) -> None:
        chosen = Sampling(temperature=0.7, seed=7, top_k=40)
        answers = []
        for neighbours in (0, 3, 7):
            places = engine.together(8)
            assert places is not None
            for number in range(neighbours):
                joined(places, prompts[1 + number], Sampling(temperature=2, seed=number))
            answers.append(written(places, joined(places, prompts[0], chosen), 4))
        assert answers[0] == answers[1] == answers[2] == alone(engine, prompts[0], 4, chosen)

    def test_penalties_count_the_own_tokens_alone(
        self, engine: LlamaCppEngine, places: Together, prompts: list[list[int]]
    ) -> None:
        wanted = Sampling(presence_penalty=-100)
        place, *_ = [joined(places, prompt, wanted) for prompt in prompts[:3]]
        assert set(written(places, place, 6)) == set(alone(engine, prompts[0], 6, wanted))


class TestWhatGoesWrong:
    def test_one_that_the_library_fails_on_fails_alone(
        self,
        engine: LlamaCppEngine,
        places: Together,
        monkeypatch: pytest.MonkeyPatch,
        prompts: list[list[int]],
    ) -> None:
        poison = 666
        decode = places._context.decode

        def failing(batch: Any) -> bool:
            if poison in [batch.token[at] for at in range(batch.n_tokens)]:
                raise WorkerError("llama.cpp failed")
            return decode(batch)

        monkeypatch.setattr(places._context, "decode", failing)
        expected = [sure(engine, prompt, 6) for prompt in prompts[:2]]
        first, wrong, second = (
            joined(places, prompts[0]),
            joined(places, [1, poison]),
            joined(places, prompts[1]),
        )
        tokens = places.step(go_on)
        assert isinstance(tokens[wrong], WorkerError)
        places.leave(wrong)
        found = [[tokens[first]], [tokens[second]]]
        for _ in range(5):
            tokens = places.step(go_on)
            found[0].append(tokens[first])
            found[1].append(tokens[second])
        for given, clearly in zip(found, expected, strict=True):
            assert given[: len(clearly)] == clearly
        assert written(places, joined(places, prompts[2]), 1) == alone(engine, prompts[2], 1)

    def test_a_step_that_is_given_up_leaves_nothing_behind(
        self, engine: LlamaCppEngine, places: Together, prompts: list[list[int]]
    ) -> None:
        def leave() -> None:
            raise DeadlineError("nobody waits")

        first = joined(places, prompts[0])
        before = written(places, first, 2)
        second = joined(places, LONG)
        with pytest.raises(DeadlineError, match="nobody waits"):
            places.step(leave)
        places.leave(second)
        expected = sure(engine, prompts[0], 8)
        assert [*before, *written(places, first, 6)][: len(expected)] == expected
