"""The gate passes equal answers, tells by how much others differ, and fails what must fail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlos.errors import ParityError, UsageError
from mlos.model import InferenceRequest, ParityMeasure
from mlos.parity import (
    TOLERANCES,
    Case,
    GoldenRecord,
    Tolerance,
    compare_outputs,
    describe,
    require,
    tolerance_named,
)

FP32 = TOLERANCES["fp32"]


def answers(golden: GoldenRecord) -> dict[str, dict[str, NDArray[Any]]]:
    return {case.name: {name: tensor.copy() for name, tensor in case.outputs.items()} for case in golden.cases}


def measured(golden: GoldenRecord, given: Any, tolerance: Tolerance = FP32) -> dict[str, ParityMeasure]:
    return {measure.output: measure for measure in compare_outputs(golden, given, tolerance)}


def test_equal_answers_pass_with_no_error(golden: GoldenRecord) -> None:
    measures = compare_outputs(golden, answers(golden), FP32)
    assert [measure.output for measure in measures] == ["logits", "last_hidden_state"]
    for measure in measures:
        assert (measure.max_abs_error, measure.worst_ratio, measure.cosine) == (0, 0, 1)
        assert measure.passed
    assert [measure.argmax_agreement for measure in measures] == [1, None]
    require(measures)


def test_rounding_passes_and_is_printed_beside_its_tolerance(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["padded batch"]["last_hidden_state"][0, 2, 1] += 2e-3
    measure = measured(golden, given)["last_hidden_state"]
    assert measure.passed
    assert measure.case == "padded batch"
    assert measure.max_abs_error == pytest.approx(2e-3, rel=1e-3)
    assert measure.worst_ratio == pytest.approx(2e-3 / (1e-4 + 1e-3 * 3), rel=1e-3)
    line = describe(measure)
    for part in ("last_hidden_state", "0.002", "atol 0.0001", "rtol 0.001", "fp32", "'padded batch'"):
        assert part in line


def test_an_error_over_the_tolerance_fails_and_names_output_case_and_both_numbers(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["padded batch"]["logits"][0, 1, 1] += 0.31
    measures = compare_outputs(golden, given, FP32)
    with pytest.raises(
        ParityError, match=r"logits: max \|error\| 0.31 against tolerance atol 0.0001"
    ) as caught:
        require(measures)
    assert "in case 'padded batch'" in caught.value.message
    assert caught.value.field == "logits"


def test_the_ratio_is_the_worst_of_all_not_that_of_the_largest_error(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["one text"]["logits"][0, 0, 0] += 4e-3  # allowed: 1e-4 + 4e-3
    given["one text"]["logits"][0, 0, 2] += 1e-3  # not allowed: the reference is 0
    measure = measured(golden, given)["logits"]
    assert measure.max_abs_error == pytest.approx(4e-3, rel=1e-3)
    assert measure.worst_ratio == pytest.approx(10, rel=1e-3)
    assert not measure.passed


def test_values_at_padding_are_compared(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["padded batch"]["last_hidden_state"][1, 2, 0] = 1
    assert not measured(golden, given)["last_hidden_state"].passed


def test_decisions_at_padding_are_not_counted(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["padded batch"]["logits"][1, 1:] = [0, 9, 0]
    assert measured(golden, given, TOLERANCES["int8"])["logits"].argmax_agreement == 1


def test_a_changed_decision_lowers_the_agreement(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["one text"]["logits"][0, 1] = [0, 1, 3]
    measure = measured(golden, given)["logits"]
    assert measure.argmax_agreement == pytest.approx(5 / 6)
    assert not measure.passed


def near_tie(gap: float) -> GoldenRecord:
    rows = np.array([[[1, 1 + gap, 0], [0, 0, 5]]], dtype=np.float64)
    return GoldenRecord((Case("tie", InferenceRequest(text=""), "x", {}, {"logits": rows}, None),))


def test_a_tie_of_the_reference_decides_nothing() -> None:
    tie, clear = near_tie(1.9e-4), near_tie(2.1e-4)
    for golden, agreement in ((tie, 1.0), (clear, 0.5)):
        given = answers(golden)
        given["tie"]["logits"][0, 0, 0] += 3e-4  # within atol + rtol, and enough to change the argmax
        measure = measured(golden, given)["logits"]
        assert measure.worst_ratio is not None
        assert measure.worst_ratio <= 1
        assert measure.argmax_agreement == agreement
        assert measure.passed is (agreement == 1)


def test_the_cosine_is_of_the_worst_sample(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["padded batch"]["last_hidden_state"][1] = [[4, 2], [0, 0], [0, 0]]
    measure = measured(golden, given, TOLERANCES["int8"])["last_hidden_state"]
    assert measure.cosine == pytest.approx(0, abs=1e-12)
    assert not measure.passed


def test_a_zero_answer_is_no_agreement(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["one text"]["last_hidden_state"][:] = 0
    assert measured(golden, given, TOLERANCES["int8"])["last_hidden_state"].cosine == 0


def test_rows_without_an_elementwise_bound_judge_direction_and_decision(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["one text"]["last_hidden_state"] *= 1.01
    measure = measured(golden, given, TOLERANCES["int8"])["last_hidden_state"]
    assert (measure.atol, measure.rtol, measure.worst_ratio) == (None, None, None)
    assert measure.passed
    assert "against tolerance int8" in describe(measure)
    assert not measured(golden, given)["last_hidden_state"].passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", ["fp32", "int8"])
def test_nan_and_infinity_fail(golden: GoldenRecord, bad: float, row: str) -> None:
    given = answers(golden)
    given["one text"]["logits"][0, 0, 0] = bad
    with pytest.raises(ParityError, match="'logits' in case 'one text': 1 of the model's 6 values are NaN"):
        compare_outputs(golden, given, TOLERANCES[row])


def test_nan_in_the_reference_fails_too(golden: GoldenRecord) -> None:
    given = answers(golden)
    golden.cases[0].outputs["logits"][0, 0, 0] = np.nan
    with pytest.raises(ParityError, match="the framework's 6 values"):
        compare_outputs(golden, given, FP32)


def test_another_shape_fails_with_both_shapes(golden: GoldenRecord) -> None:
    given = answers(golden)
    given["one text"]["logits"] = given["one text"]["logits"][:, :1]
    with pytest.raises(ParityError, match=r"has shape \[1, 1, 3\], the framework's has \[1, 2, 3\]"):
        compare_outputs(golden, given, FP32)


def test_a_missing_answer_fails(golden: GoldenRecord) -> None:
    given = answers(golden)
    del given["padded batch"]["logits"]
    with pytest.raises(ParityError, match="'logits' in case 'padded batch' was not answered"):
        compare_outputs(golden, given, FP32)
    with pytest.raises(ParityError, match="was not answered"):
        compare_outputs(golden, {}, FP32)


def test_an_empty_record_proves_nothing() -> None:
    with pytest.raises(ParityError, match="no cases"):
        compare_outputs(GoldenRecord(()), {}, FP32)


def test_whole_numbers_and_booleans_are_compared() -> None:
    outputs = {"labels": np.array([1, 2, 3]), "kept": np.array([True, False]), "count": np.array(4)}
    golden = GoldenRecord((Case("c", InferenceRequest(text=""), "x", {}, outputs, None),))
    given = answers(golden)
    assert all(measure.passed for measure in compare_outputs(golden, given, FP32))
    given["c"]["kept"] = np.array([True, True])
    assert not measured(golden, given)["kept"].passed


def test_the_rows_are_those_of_the_standard() -> None:
    rows = {
        row.name: (row.atol, row.rtol, row.cosine, row.argmax)
        for row in TOLERANCES.values()
        if row.kl_divergence is None
    }
    assert rows == {
        "F32": (1e-4, 1e-3, 0.9999, 1.0),
        "fp32": (1e-4, 1e-3, 0.9999, 1.0),
        "fp32-wide": (1e-3, 1e-3, 0.9999, 1.0),
        "fp16": (None, None, 0.999, 0.995),
        "bf16": (None, None, 0.995, 0.99),
        "int8": (None, None, 0.98, 0.97),
    }
    divergences = {row.name: row.kl_divergence for row in TOLERANCES.values() if row.kl_divergence is not None}
    assert divergences == {"F16": 1e-4, "BF16": 1e-4, "Q8_0": 1e-3, "Q5_K_M": 1e-2, "Q4_K_M": 3e-2}
    with pytest.raises(UsageError, match="'int4'"):
        tolerance_named("int4")


class Tiny:
    """Two dense layers and a head: enough to be mutated as a real model is."""

    def __init__(self, seed: int = 7) -> None:
        random = np.random.default_rng(seed)
        self.layers = [random.normal(0, 0.5, (16, 16)).astype(np.float32) for _ in range(2)]
        self.embedding = random.normal(0, 1, (50, 16)).astype(np.float32)
        self.head = random.normal(0, 1, (16, 20)).astype(np.float32)

    def __call__(self, tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
        hidden = self.embedding[tokens]
        for layer in self.layers:
            hidden = np.tanh(hidden @ layer)
        return {"logits": hidden @ self.head, "last_hidden_state": hidden}


BATCHES = {"a": np.array([[1, 2, 3]]), "b": np.array([[4, 5], [6, 7]])}


@pytest.fixture
def mutant() -> tuple[Tiny, GoldenRecord]:
    cases = tuple(
        Case(name, InferenceRequest(text=name), "x", {"input_ids": tokens}, Tiny()(tokens), None)
        for name, tokens in BATCHES.items()
    )
    return Tiny(), GoldenRecord(cases)


def only_logits(golden: GoldenRecord) -> GoldenRecord:
    """The record without the outputs that have no distribution."""
    return GoldenRecord(
        tuple(replace(case, outputs={"logits": case.outputs["logits"]}) for case in golden.cases)
    )


def passes(model: Tiny, golden: GoldenRecord, tolerance: Tolerance) -> bool:
    given = {name: model(tokens) for name, tokens in BATCHES.items()}
    return all(measure.passed for measure in compare_outputs(golden, given, tolerance))


@pytest.mark.parametrize("row", list(TOLERANCES.values()), ids=list(TOLERANCES))
def test_the_unchanged_model_passes_every_row(mutant: tuple[Tiny, GoldenRecord], row: Tolerance) -> None:
    model, golden = mutant
    assert passes(model, golden if row.kl_divergence is None else only_logits(golden), row)


@pytest.mark.parametrize("row", list(TOLERANCES.values()), ids=list(TOLERANCES))
def test_swapped_layers_fail_every_row(mutant: tuple[Tiny, GoldenRecord], row: Tolerance) -> None:
    model, golden = mutant
    model.layers.reverse()
    assert not passes(model, golden if row.kl_divergence is None else only_logits(golden), row)


def test_the_divergence_is_the_mean_over_valid_positions_in_nats() -> None:
    reference = np.log(np.array([[[0.5, 0.5], [0.25, 0.75]], [[0.5, 0.5], [0.9, 0.1]]]))
    answer = np.log(np.array([[[0.5, 0.5], [0.75, 0.25]], [[0.25, 0.75], [0.1, 0.9]]]))
    inputs = {"attention_mask": np.array([[1, 1], [1, 0]])}
    golden = GoldenRecord(
        (
            Case(
                "c",
                InferenceRequest(text=""),
                "x",
                inputs,
                {"logits": (reference + 7).astype(np.float32)},
                None,
            ),
        )
    )
    (measure,) = compare_outputs(golden, {"c": {"logits": answer.astype(np.float32)}}, TOLERANCES["Q4_K_M"])
    expected = (0 + 0.5 * np.log(3) + 0.5 * np.log(4 / 3)) / 3  # by hand; the padded position is not counted
    assert measure.kl_divergence == pytest.approx(expected, rel=1e-6)
    assert not measure.passed
    assert "mean KL divergence 0.231 of at most 0.03 nats" in describe(measure)


def test_a_divergence_bounds_nothing_but_logits_so_another_output_does_not_pass(
    mutant: tuple[Tiny, GoldenRecord],
) -> None:
    model, golden = mutant
    assert not passes(model, golden, TOLERANCES["F16"])


def test_rows_without_a_divergence_measure_none(mutant: tuple[Tiny, GoldenRecord]) -> None:
    model, golden = mutant
    given = {name: model(tokens) for name, tokens in BATCHES.items()}
    assert [each.kl_divergence for each in compare_outputs(golden, given, FP32)] == [None, None]


def test_a_flipped_high_bit_of_one_weight_fails(mutant: tuple[Tiny, GoldenRecord]) -> None:
    model, golden = mutant
    model.layers[0].view(np.uint32)[3, 4] ^= 1 << 28  # an exponent bit
    assert not passes(model, golden, FP32)


def test_wrong_normalisation_fails(mutant: tuple[Tiny, GoldenRecord]) -> None:
    model, golden = mutant
    model.embedding = model.embedding * 1.1 - 0.05
    assert not passes(model, golden, FP32)


def test_other_tokens_fail(mutant: tuple[Tiny, GoldenRecord]) -> None:
    model, golden = mutant
    given = {name: model(tokens + 1) for name, tokens in BATCHES.items()}
    assert not all(measure.passed for measure in compare_outputs(golden, given, FP32))
