"""A record whose answers are all alike is called vacuous; that of a working model is not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mlos.model import InferenceRequest
from mlos.parity import TOLERANCES, Case, GoldenRecord, vacuity

FP32 = TOLERANCES["fp32"]


def record(
    name: str, *outputs: NDArray[np.float64], masks: tuple[NDArray[np.int64], ...] | None = None
) -> GoldenRecord:
    given = masks or tuple(np.ones(output.shape[:2], dtype=np.int64) for output in outputs)
    return GoldenRecord(
        tuple(
            Case(str(number), InferenceRequest(text=""), "x", {"attention_mask": mask}, {name: output}, None)
            for number, (output, mask) in enumerate(zip(outputs, given, strict=True))
        )
    )


def test_a_working_record_is_not_vacuous(golden: GoldenRecord) -> None:
    assert vacuity(golden, FP32) is None


def test_outputs_that_hardly_spread_are_vacuous() -> None:
    random = np.random.default_rng(0)
    outputs = [5 + random.normal(0, 1, (2, 4, 8)) * 1e-4 for _ in range(3)]
    reason = vacuity(record("last_hidden_state", *outputs), FP32)
    assert reason is not None
    assert reason.startswith("last_hidden_state: spread across inputs")
    assert "under 0.1 (1000 times atol 0.0001)" in reason


def test_zeros_are_vacuous() -> None:
    assert vacuity(record("logits", np.zeros((3, 10))), FP32) is not None


@pytest.mark.parametrize(("spread", "vacuous"), [(0.0999, True), (0.1001, False)])
def test_the_bound_is_a_thousand_times_atol(spread: float, vacuous: bool) -> None:
    output = np.array([[0.0, 1.0], [0.0, 1.0 + spread]])
    assert (vacuity(record("pooler_output", output), FP32) is not None) is vacuous


def test_a_wider_tolerance_asks_for_a_wider_spread() -> None:
    output = np.array([[0.0], [0.5]])
    assert vacuity(record("scores", output), FP32) is None
    assert vacuity(record("scores", output), TOLERANCES["fp32-wide"]) is not None
    assert vacuity(record("scores", output), TOLERANCES["int8"]) is None


def test_positions_that_differ_within_each_text_but_not_between_texts_are_vacuous() -> None:
    text = np.arange(12.0).reshape(1, 6, 2)
    assert vacuity(record("last_hidden_state", text, text, text), FP32) is not None


def test_padding_counts_for_nothing() -> None:
    same = np.zeros((2, 3, 4))
    same[:, 0] = 1
    same[1, 2] = 100  # at padding
    masks = (np.array([[1, 0, 0], [1, 0, 0]]),)
    assert vacuity(record("last_hidden_state", same, masks=masks), FP32) is not None


def test_one_argmax_for_every_input_is_vacuous_for_logits() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 1, (3, 4, 10))
    assert vacuity(record("logits", logits), FP32) is None
    logits[..., 7] += 100
    assert vacuity(record("logits", logits), FP32) == "logits: the argmax is 7 for every input"


def test_an_argmax_that_differs_only_at_padding_is_vacuous() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 1, (2, 3, 10))
    logits[:, :2, 7] += 100
    masks = (np.array([[1, 1, 0], [1, 1, 0]]),)
    assert vacuity(record("logits", logits, masks=masks), FP32) is not None


def test_an_outlier_dimension_makes_no_hidden_state_vacuous() -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(0, 1, (3, 4, 10))
    hidden[..., 7] += 100
    assert vacuity(record("last_hidden_state", hidden), FP32) is None


def test_one_input_proves_nothing() -> None:
    reason = vacuity(record("pooler_output", np.arange(8.0)[None]), FP32)
    assert reason is not None
    assert "spread across inputs 0" in reason


def test_nan_is_no_spread() -> None:
    assert vacuity(record("scores", np.array([[np.nan], [1.0]])), FP32) is not None


def test_outputs_of_different_width_and_single_numbers_are_compared() -> None:
    assert vacuity(record("mask", np.zeros((1, 2, 3)), np.ones((1, 2, 5))), FP32) is None
    assert vacuity(record("mask", np.ones((1, 2, 3)), np.ones((1, 2, 5))), FP32) is not None
    singles = GoldenRecord(
        tuple(
            Case(str(value), InferenceRequest(text=""), "x", {}, {"score": np.array(value)}, None)
            for value in (0.0, 1.0)
        )
    )
    assert vacuity(singles, FP32) is None


def test_an_empty_record_is_vacuous() -> None:
    assert vacuity(GoldenRecord(()), FP32) == "the golden record has no cases"


def test_the_labels_of_a_map_are_its_second_axis() -> None:
    logits = np.random.default_rng(0).normal(0, 1, (3, 4, 6, 6))
    assert vacuity(record("logits", logits), FP32) is None
    logits[:, 2] += 100
    assert vacuity(record("logits", logits), FP32) == "logits: the argmax is 2 for every input"


def generation(*steps: list[int]) -> GoldenRecord:
    """An encoder-decoder's record: one answer a case, whose logits decide these tokens."""
    cases = []
    for number, tokens in enumerate(steps):
        forced, logits = np.zeros((1, len(tokens)), dtype=np.int64), np.eye(10)[None, tokens] * (5 + number)
        inputs = {"input_ids": np.ones((1, 3)), "decoder_input_ids": forced}
        cases.append(Case(str(number), InferenceRequest(text=""), "x", inputs, {"logits": logits}, None))
    return GoldenRecord(tuple(cases))


def test_generations_that_each_repeat_one_token_are_vacuous() -> None:
    assert vacuity(generation([3, 3, 3], [7, 7]), FP32) == "each of the 2 generations repeats one token"
    assert vacuity(generation([3, 3, 3], [7, 8]), FP32) is None
    assert vacuity(generation([3], [7]), FP32) is None  # there is nothing that could vary


def written(*answers: tuple[str, int]) -> GoldenRecord:
    """A language model's record: the logits of prompts, and what was written after each."""
    random = np.random.default_rng(0)
    return GoldenRecord(
        tuple(
            Case(
                str(number),
                InferenceRequest(prompt=""),
                "text-generation",
                {"input_ids": np.ones((1, 4))},
                {"logits": random.normal(0, 1, (1, 4, 10))},
                {"text": text, "finish_reason": "length", "usage": {"completion_tokens": tokens}},
            )
            for number, (text, tokens) in enumerate(answers)
        )
    )


def test_texts_that_each_repeat_one_piece_are_vacuous() -> None:
    assert vacuity(written((" the the the", 3), ("aaaa", 4)), FP32) is not None
    assert vacuity(written((" the the the", 3), ("abab", 4)), FP32) is None
    assert vacuity(written((" the", 1), ("", 8)), FP32) is None
