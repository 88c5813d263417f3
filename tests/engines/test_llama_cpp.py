"""The engine of GGUF files, on a language model small enough to make here."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.tiny_llama import TinyLlama, tiny_llama

from mlos.engines import LanguageModel, Sampling, engine_for, open_model
from mlos.engines.llama_cpp import LlamaCppEngine
from mlos.errors import DeadlineError, InvalidInputError, PayloadTooLargeError, RefusedError, UsageError
from mlos.model import TensorSpec

GREEDY = Sampling()
LONG = [(7 * at) % 31000 + 3 for at in range(300)]
PROMPT = [1, 2860, 278, 14280, 750, 4502, 29892, 278, 7751]


@pytest.fixture(scope="module")
def llama() -> TinyLlama:
    return tiny_llama()


@pytest.fixture
def engine(llama: TinyLlama) -> LlamaCppEngine:
    return LlamaCppEngine.open(llama.folder, llama.artifacts["F32"], 2)


def go_on() -> None:
    """Somebody still waits."""


def written(engine: LlamaCppEngine, prompt: list[int], sampling: Sampling, count: int) -> list[int]:
    tokens = engine.generate(prompt, sampling, go_on)
    found = list(itertools.islice(tokens, count))
    tokens.close()
    return found


def logits(engine: LlamaCppEngine, *rows: list[int]) -> NDArray[np.float32]:
    return engine.run({"input_ids": np.array(rows, dtype=np.int64)})["logits"]


def test_it_is_the_engine_for_gguf_and_a_language_model(llama: TinyLlama, engine: LlamaCppEngine) -> None:
    assert engine_for(llama.artifacts["F32"]) is LlamaCppEngine
    assert isinstance(open_model(llama.folder, llama.artifacts["Q4_K_M"], 1), LanguageModel)
    assert engine.context_length == 2048
    assert engine.version.count(".") == 2


def test_logits_at_every_position_are_the_framework_s(llama: TinyLlama, engine: LlamaCppEngine) -> None:
    for case in llama.golden.cases:
        given = engine.run(case.inputs)["logits"]
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, case.outputs["logits"], atol=1e-4, rtol=0)


def test_greedy_tokens_are_the_framework_s(llama: TinyLlama, engine: LlamaCppEngine) -> None:
    from mlos.engines import vocabulary_of

    vocabulary = vocabulary_of(llama.folder, llama.artifacts["F32"])
    for case in llama.golden.cases:
        count = case.result["usage"]["completion_tokens"]
        tokens = written(engine, case.inputs["input_ids"][0].tolist(), GREEDY, count)
        assert b"".join(map(vocabulary.piece, tokens)).decode() == case.result["text"]


def test_greedy_is_the_argmax_of_run(engine: LlamaCppEngine) -> None:
    tokens = written(engine, PROMPT, GREEDY, 6)
    for count, token in enumerate(tokens):
        assert logits(engine, [*PROMPT, *tokens[:count]])[0, -1].argmax() == token


def test_a_row_does_not_depend_on_its_neighbours(engine: LlamaCppEngine) -> None:
    one, other = [5, 6, 7, 8], [900, 901, 902, 903]
    both = logits(engine, one, other)
    np.testing.assert_array_equal(both[0], logits(engine, one)[0])
    np.testing.assert_array_equal(both[1], logits(engine, other)[0])


def test_a_row_longer_than_a_chunk_is_as_one(engine: LlamaCppEngine) -> None:
    row = [(7 * at) % 31000 for at in range(300)]
    np.testing.assert_allclose(logits(engine, row)[0, :40], logits(engine, row[:40])[0], atol=1e-4, rtol=0)


def test_outputs_are_chosen(engine: LlamaCppEngine) -> None:
    given = {"input_ids": np.array([[1, 2]])}
    assert list(engine.run(given, ["logits"])) == ["logits"]
    assert engine.run(given, []) == {}
    assert engine.run({"input_ids": np.zeros((2, 0), dtype=np.int64)})["logits"].shape == (2, 0, 32000)


@pytest.mark.parametrize("token", [-1, 32000, 1 << 40])
def test_a_token_out_of_range_is_refused(engine: LlamaCppEngine, token: int) -> None:
    with pytest.raises(InvalidInputError, match=f"there is no token {token}") as caught:
        logits(engine, [1, token])
    assert (caught.value.field, caught.value.expected) == ("inputs.input_ids", "0 to 31999")
    with pytest.raises(InvalidInputError, match=f"there is no token {token}"):
        engine.generate([1, token], GREEDY, go_on)


@pytest.mark.parametrize("shape", [(1, 2049), (600, 2), (2, 600)])
def test_more_logits_than_fit_are_refused(engine: LlamaCppEngine, shape: tuple[int, int]) -> None:
    with pytest.raises(PayloadTooLargeError, match="more than the model answers at a time"):
        engine.run({"input_ids": np.ones(shape, dtype=np.int64)})


@pytest.mark.parametrize("prompt", [[], [1] * 2048, [1] * 5000], ids=len)
def test_a_prompt_that_leaves_no_room_is_refused_at_once(engine: LlamaCppEngine, prompt: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="cannot be continued") as caught:
        engine.generate(prompt, GREEDY, go_on)
    assert caught.value.expected == "1 to 2047 tokens"


def test_where_the_context_is_full_the_iterator_ends(engine: LlamaCppEngine) -> None:
    assert len(list(engine.generate([1] * 2043, GREEDY, go_on))) == 5


class TestSampling:
    def test_a_seed_repeats(self, engine: LlamaCppEngine) -> None:
        chosen = Sampling(temperature=1.5, seed=7)
        assert written(engine, PROMPT, chosen, 12) == written(engine, PROMPT, chosen, 12)

    def test_seeds_differ_and_none_draws_one(self, engine: LlamaCppEngine) -> None:
        runs = [written(engine, PROMPT, Sampling(temperature=2, seed=seed), 8) for seed in (1, 2, None, None)]
        assert len({tuple(run) for run in runs}) == 4

    @pytest.mark.parametrize(
        "narrow", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=lambda given: next(iter(given))
    )
    def test_only_the_likeliest_is_left(self, engine: LlamaCppEngine, narrow: dict[str, float]) -> None:
        assert written(engine, PROMPT, Sampling(temperature=2, seed=3, **narrow), 8) == written(  # type: ignore[arg-type]  # top_k is whole
            engine, PROMPT, GREEDY, 8
        )

    def test_the_repetition_penalty_counts_the_prompt(self, engine: LlamaCppEngine) -> None:
        first = written(engine, PROMPT, GREEDY, 1)
        before = logits(engine, [*PROMPT[:1], *first, *PROMPT[1:]])[0, -1]
        best = int(before.argmax())
        prompt = [*PROMPT[:1], best, *PROMPT[1:]]
        plain = written(engine, prompt, GREEDY, 1)
        penalised = logits(engine, prompt)[0, -1]
        for token in set(prompt):
            penalised[token] = penalised[token] / 5 if penalised[token] > 0 else penalised[token] * 5
        assert written(engine, prompt, Sampling(repetition_penalty=5), 1) == [int(penalised.argmax())]
        assert plain == [int(logits(engine, prompt)[0, -1].argmax())]

    def test_additive_penalties_count_what_was_written_only(self, engine: LlamaCppEngine) -> None:
        strong = Sampling(presence_penalty=2, frequency_penalty=2)
        assert written(engine, PROMPT, strong, 1) == written(engine, PROMPT, GREEDY, 1)
        favoured = written(engine, PROMPT, Sampling(presence_penalty=-100), 6)
        assert len(set(favoured)) == 1  # what was written once is wanted above all


class TestWhatItRemembers:
    @pytest.mark.parametrize("precision", ["F32", "Q4_K_M"])
    def test_answers_are_those_of_a_fresh_engine_whatever_was_asked_before(
        self, llama: TinyLlama, precision: str
    ) -> None:
        chosen = Sampling(temperature=3, seed=1)  # so hot that a last bit soon tells
        engine = LlamaCppEngine.open(llama.folder, llama.artifacts[precision], 2)
        answer = written(engine, LONG, chosen, 20)
        prompts = [
            LONG,
            [*LONG, *answer, 11, 12, 13],
            LONG[:256],
            LONG[:200],
            [*LONG[:140], 99],
            PROMPT,
            [2, *LONG],
        ]
        for prompt in prompts:
            fresh = LlamaCppEngine.open(llama.folder, llama.artifacts[precision], 2)
            assert written(engine, prompt, chosen, 20) == written(fresh, prompt, chosen, 20)

    def test_only_what_differs_is_read_again(
        self, engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[int] = []
        decode = engine._sequence._decode

        def counted(tokens: list[int]) -> bool:
            read.append(len(tokens))
            return decode(tokens)

        monkeypatch.setattr(engine._sequence, "_decode", counted)
        answer = written(engine, LONG, GREEDY, 3)
        assert read == [128, 128, 44, 1, 1]
        for prompt, expected in (
            (LONG, [44]),
            ([*LONG, *answer, 50], [48]),  # what was written is read again, with its chunk
            (LONG[:256], [128]),
            ([*LONG[:130], 99], [3]),
            ([2, *LONG], [128, 128, 45]),
        ):
            read.clear()
            written(engine, prompt, GREEDY, 1)
            assert read == expected

    def test_run_leaves_the_sequence_alone(self, engine: LlamaCppEngine) -> None:
        tokens = engine.generate(PROMPT, GREEDY, go_on)
        first = list(itertools.islice(tokens, 3))
        tokens.close()
        logits(engine, [5, 6, 7])
        assert written(engine, PROMPT, GREEDY, 3) == first


class TestGivingUp:
    def test_check_ends_the_reading_of_a_prompt(self, engine: LlamaCppEngine) -> None:
        asked = 0

        def leave() -> None:
            nonlocal asked
            asked += 1
            if asked == 2:
                raise DeadlineError("nobody waits")

        prompt = [(7 * at) % 31000 for at in range(2000)]
        with pytest.raises(DeadlineError, match="nobody waits"):
            next(engine.generate(prompt, GREEDY, leave))
        held = len(engine._sequence._held)
        assert held < len(prompt)
        assert written(engine, PROMPT, GREEDY, 4) == written(engine, PROMPT, GREEDY, 4)
        fresh = written(engine, prompt, GREEDY, 2)
        assert logits(engine, prompt[:500])[0, -1].argmax() == written(engine, prompt[:500], GREEDY, 1)[0]
        assert len(fresh) == 2

    def test_check_is_asked_for_every_token_and_ends_them(self, engine: LlamaCppEngine) -> None:
        got = 0

        def leave() -> None:
            if got == 5:
                raise DeadlineError("nobody waits")

        tokens = engine.generate(PROMPT, GREEDY, leave)
        while got < 5:
            next(tokens)
            got += 1
        with pytest.raises(DeadlineError):
            next(tokens)
        assert len(written(engine, PROMPT, GREEDY, 8)) == 8

    def test_another_waits_until_the_iterator_is_closed_and_may_give_up(self, engine: LlamaCppEngine) -> None:
        first = engine.generate(PROMPT, GREEDY, go_on)
        next(first)
        started = time.monotonic()

        def soon() -> None:
            if time.monotonic() > started + 0.1:
                raise DeadlineError("too late")

        with pytest.raises(DeadlineError, match="too late"):
            next(engine.generate(PROMPT, GREEDY, soon))
        found: list[int] = []
        second = threading.Thread(target=lambda: found.extend(written(engine, PROMPT, GREEDY, 3)))
        second.start()
        next(first)
        first.close()
        second.join(30)
        assert found == written(engine, PROMPT, GREEDY, 3)


class TestWhatIsRefused:
    def test_no_threads(self, llama: TinyLlama) -> None:
        with pytest.raises(UsageError, match="needs a thread"):
            LlamaCppEngine.open(llama.folder, llama.artifacts["F32"], 0)

    def test_a_file_that_is_no_model_is_told_in_one_line_and_nothing_is_printed(
        self, llama: TinyLlama, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(64))
        artifact = llama.artifacts["F32"].model_copy(update={"path": "model.gguf"})
        with pytest.raises(RefusedError, match=r"llama\.cpp cannot load model\.gguf: \S") as caught:
            LlamaCppEngine.open(tmp_path, artifact, 1)
        assert "\n" not in caught.value.message
        assert capfd.readouterr() == ("", "")

    def test_other_tensors_than_declared(self, llama: TinyLlama) -> None:
        artifact = llama.artifacts["F32"]
        wrong = TensorSpec(name="logits", dtype="FP32", shape=("batch", "sequence", 31999))
        with pytest.raises(RefusedError, match="other tensors than its manifest declares"):
            LlamaCppEngine.open(llama.folder, artifact.model_copy(update={"outputs": (wrong,)}), 1)

    def test_a_file_outside_the_package(self, llama: TinyLlama, tmp_path: Path) -> None:
        artifact = llama.artifacts["F32"].model_copy(update={"path": "../made/model.F32.gguf"})
        with pytest.raises(RefusedError, match="outside its package"):
            LlamaCppEngine.open(llama.folder.parent / "repository", artifact, 1)
