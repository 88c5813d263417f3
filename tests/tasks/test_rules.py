"""Rules of generation do to scores what the framework's own processors do, alone and in a search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from mlos.tasks import rules
from mlos.tasks.rules import Rule, Rules, apply
from mlos.tasks.search import Beams, EarlyStopping, beam_search, greedy

START, ENDS, WORDS = 2, [2, 7], 30
PROCESSORS: Any = transformers.generation.logits_process


def scores_of(seed: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sequences in which words come again and again, and scores of both signs, some -inf."""
    chance = np.random.default_rng(seed)
    scores = chance.normal(0, 3, (4, WORDS)).astype(np.float32)
    scores[chance.random(scores.shape) < 0.1] = -np.inf
    return chance.integers(0, 4, (4, length)), scores


ONE_BY_ONE = [
    (rules.repetition_penalty(1.3), PROCESSORS.RepetitionPenaltyLogitsProcessor(1.3)),
    (rules.repetition_penalty(0.7), PROCESSORS.RepetitionPenaltyLogitsProcessor(0.7)),
    *((rules.no_repeat_ngram(size), PROCESSORS.NoRepeatNGramLogitsProcessor(size)) for size in (1, 2, 3, 5)),
    (rules.min_length(5, ENDS), PROCESSORS.MinLengthLogitsProcessor(5, ENDS)),
    (rules.min_length(1 + 6, ENDS), PROCESSORS.MinNewTokensLengthLogitsProcessor(1, 6, ENDS)),
    (rules.forced_at(1, [3]), PROCESSORS.ForcedBOSTokenLogitsProcessor(3)),
    (rules.forced_at(7, [2]), PROCESSORS.ForcedEOSTokenLogitsProcessor(8, 2)),
    (rules.forced_at(7, ENDS), PROCESSORS.ForcedEOSTokenLogitsProcessor(8, ENDS)),
]


@pytest.mark.parametrize(("ours", "theirs"), ONE_BY_ONE, ids=lambda rule: type(rule).__name__)
def test_a_rule_is_the_frameworks_bit_for_bit(ours: Rule, theirs: Any) -> None:
    changed = False
    for seed in range(20):
        for length in range(1, 12):
            sequences, scores = scores_of(seed, length)
            before = scores.copy()
            got = ours(sequences, scores)
            wanted = theirs(torch.from_numpy(sequences), torch.from_numpy(scores.copy())).numpy()
            np.testing.assert_array_equal(got, wanted)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(scores, before)  # which belong to the engine
            changed |= not np.array_equal(got, before)
    assert changed


def together(most: int, **options: Any) -> Any:
    """The framework's own list of processors, as its ``generate`` makes it."""
    kind: Any = transformers.GenerationConfig
    config = kind(max_length=most + 1, eos_token_id=ENDS, **options)
    if (least := options.get("min_new_tokens")) is not None:
        config.min_length = least + 1  # as generate does
    config._eos_token_tensor = torch.tensor(ENDS)
    model: Any = transformers.T5ForConditionalGeneration
    bare = model.__new__(model)
    torch.nn.Module.__init__(bare)
    bare.config = transformers.T5Config()
    return bare._get_logits_processor(config, input_ids_seq_length=1, device="cpu")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"min_length": 5, "forced_eos_token_id": 2},
        {"min_length": 9, "min_new_tokens": 3, "no_repeat_ngram_size": 1},
        {"forced_bos_token_id": 2, "min_length": 4, "repetition_penalty": 2.0},
        {
            "repetition_penalty": 0.8,
            "no_repeat_ngram_size": 3,
            "min_new_tokens": 6,
            "forced_bos_token_id": 4,
            "forced_eos_token_id": ENDS,
        },
    ],
)
@pytest.mark.parametrize("most", [1, 8])
def test_all_rules_come_in_the_frameworks_order(options: dict[str, Any], most: int) -> None:
    forced = options.get("forced_eos_token_id", ())
    mine = options | {"forced_eos_token_id": (forced,) if isinstance(forced, int) else tuple(forced)}
    ours, theirs = Rules(**mine).of(ENDS, most), together(most, **options)
    for seed in range(10):
        for length in range(1, most + 1):
            sequences, scores = scores_of(seed, length)
            wanted = theirs(torch.from_numpy(sequences), torch.from_numpy(scores.copy())).numpy()
            np.testing.assert_array_equal(apply(ours, sequences, scores), wanted)


SEARCHED = [
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2},
    {"min_length": 7},
    {"min_new_tokens": 5, "min_length": 2},
    {"forced_bos_token_id": 9},
    {"forced_eos_token_id": [2]},
    {
        "repetition_penalty": 1.2,
        "no_repeat_ngram_size": 3,
        "min_length": 6,
        "forced_bos_token_id": 9,
        "forced_eos_token_id": [2],
    },
]


class Framework:
    """A model of few words, so that they come again, and its own generation."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        config = transformers.BartConfig(
            vocab_size=WORDS,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=32,
            init_std=0.7,
            pad_token_id=1,
            eos_token_id=ENDS,
            decoder_start_token_id=START,
            forced_eos_token_id=None,
        )
        self._model: Any = transformers.BartForConditionalGeneration(config).train(False)
        self._texts = torch.randint(3, WORDS, (1 + seed % 3, 6))
        self.begin(1)

    def begin(self, copies: int) -> int:
        """Be ready for so many sequences of each text; returns how many texts there are."""
        self._sources = self._texts.repeat_interleave(copies, 0)
        self._tokens = torch.empty(len(self._sources), 0, dtype=torch.int64)
        return len(self._texts)

    @torch.no_grad()
    def step(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        self._tokens = torch.cat([self._tokens, torch.from_numpy(tokens.copy())[:, None]], 1)
        answer = self._model(input_ids=self._sources, decoder_input_ids=self._tokens)
        logits: NDArray[Any] = answer.logits[:, -1].numpy()
        return logits

    def select(self, rows: NDArray[np.int64]) -> None:
        self._tokens = self._tokens[torch.from_numpy(rows)]

    def says(self, most: int, **options: Any) -> list[list[int]]:
        written = self._model.generate(self._texts, max_new_tokens=most, do_sample=False, **options)
        return [until_end(row[1:]) for row in written.tolist()]


def until_end(row: list[int]) -> list[int]:
    at = next((at for at, token in enumerate(row) if token in ENDS), len(row))
    return row[: at + 1]


def rules_of(options: dict[str, Any], most: int) -> tuple[Rule, ...]:
    forced = tuple(options.get("forced_eos_token_id", ()))
    return Rules(**(options | {"forced_eos_token_id": forced})).of(ENDS, most)


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("options", SEARCHED, ids=", ".join)
def test_greedy_by_rules_is_the_frameworks(options: dict[str, Any]) -> None:
    changed = 0
    for seed in range(12):
        asked, most = Framework(seed), 4 + seed
        texts = asked.begin(1)
        steps = greedy(asked.step, START, texts, ENDS, most, rules_of(options, most))
        rows = [until_end(list(row)) for row in zip(*(each.tolist() for each in steps), strict=True)]
        assert rows == asked.says(most, num_beams=1, **options)
        changed += rows != asked.says(most, num_beams=1)
    assert changed


@pytest.mark.filterwarnings("ignore:Unfeasible length constraints")
@pytest.mark.parametrize("options", SEARCHED, ids=", ".join)
@pytest.mark.parametrize(("number", "penalty", "early"), [(4, 1.0, True), (3, 2.0, "never"), (2, 0.0, False)])
def test_a_beam_search_by_rules_is_the_frameworks(
    options: dict[str, Any], number: int, penalty: float, early: EarlyStopping
) -> None:
    for seed in range(6):
        asked, most = Framework(seed), 4 + seed
        texts, beams = asked.begin(number), Beams(number, penalty, early)
        rules_ = rules_of(options, most)
        rows = beam_search(asked.step, asked.select, START, texts, ENDS, most, beams, rules_)
        searched = {"num_beams": number, "length_penalty": penalty, "early_stopping": early}
        assert rows == asked.says(most, **searched, **options)
