"""Inputs must be the framework's exactly; results may differ as much as the outputs they are made of."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from mlos.model import InferenceRequest
from mlos.parity import TOLERANCES, GoldenRecord, compare_inputs, compare_result

FP32, INT8 = TOLERANCES["fp32"], TOLERANCES["int8"]


def test_the_same_inputs_do_not_differ(golden: GoldenRecord) -> None:
    assert compare_inputs(golden.cases[1], dict(golden.cases[1].inputs)) is None


def test_one_other_token_is_placed_and_named(golden: GoldenRecord) -> None:
    inputs = {name: tensor.copy() for name, tensor in golden.cases[1].inputs.items()}
    inputs["input_ids"][0, 2] = 99
    difference = compare_inputs(golden.cases[1], inputs)
    assert str(difference) == "input_ids differ at [0, 2] from the framework's: expected 7, got 99"


def test_names_types_and_shapes_count(golden: GoldenRecord) -> None:
    case = golden.cases[0]
    ids = case.inputs["input_ids"]
    missing = compare_inputs(case, {"input_ids": ids})
    assert str(missing).startswith(
        "tensors differ from the framework's: expected attention_mask, input_ids, got"
    )
    narrow = compare_inputs(case, {**case.inputs, "input_ids": ids.astype(np.int32)})
    assert "expected int64 [1, 2], got int32 [1, 2]" in str(narrow)
    longer = compare_inputs(case, {**case.inputs, "input_ids": np.pad(ids, ((0, 0), (0, 1)))})
    assert "expected int64 [1, 2], got int64 [1, 3]" in str(longer)


def differs(golden: GoldenRecord, expected: Any, got: Any, tolerance: Any = FP32) -> str | None:
    difference = compare_result(replace(golden.cases[0], result=expected), got, tolerance)
    return None if difference is None else str(difference)


def test_a_vector_is_held_to_the_tolerance(golden: GoldenRecord) -> None:
    vector = {"embedding": [0.6, 0.8], "dimensions": 2}
    assert differs(golden, vector, {"embedding": [0.60005, 0.8], "dimensions": 2}) is None
    assert differs(golden, vector, {"embedding": [0.61, 0.8], "dimensions": 2}) == (
        "result.embedding[0] differs from the framework's: expected 0.6, got 0.61"
    )
    assert differs(golden, vector, {"embedding": [0.61, 0.8], "dimensions": 2}, INT8) is None
    assert differs(golden, vector, {"embedding": [0.8, 0.0], "dimensions": 2}, INT8) is not None
    assert differs(golden, vector, {"embedding": [0.0, 0.0], "dimensions": 2}, INT8) is not None
    assert differs(golden, vector, {"embedding": [float("nan"), 0.8], "dimensions": 2}, INT8) is not None


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        ({"a": 1}, {"a": 1, "b": 2}),
        ([1, 2], [1]),
        ("the", "a"),
        (3, 4),
        (3, 3.5),
        (True, 1),
        ({"a": 1}, [1]),
        (0.5, 0.6),
        (0.5, "0.5"),
        ([0.5, 0.5], [0.5, None]),
    ],
)
def test_structure_text_and_numbers_must_agree(golden: GoldenRecord, expected: Any, got: Any) -> None:
    assert differs(golden, expected, expected) is None
    assert differs(golden, expected, got) is not None


def ranking(*entries: tuple[str, float]) -> list[dict[str, Any]]:
    return [{"token_str": token, "score": score} for token, score in entries]


def test_a_ranking_is_held_to_its_order_and_scores(golden: GoldenRecord) -> None:
    reference = ranking(("a", 0.5), ("b", 0.2), ("c", 0.1))
    assert differs(golden, reference, ranking(("a", 0.5005), ("b", 0.2), ("c", 0.1))) is None
    assert differs(golden, reference, ranking(("a", 0.51), ("b", 0.2), ("c", 0.1))) == (
        "result[0].score differs from the framework's: expected 0.5, got 0.51"
    )
    swapped = differs(golden, reference, ranking(("b", 0.5), ("a", 0.2), ("c", 0.1)))
    assert swapped is not None
    assert swapped.startswith("result[0] differs")
    assert differs(golden, reference, ranking(("a", 0.5), ("b", 0.2), ("x", 0.1))) is not None


def test_tiny_scores_are_compared_relatively(golden: GoldenRecord) -> None:
    """Over a vocabulary of 30,000 an untrained model's best score is 1e-4, as large as atol itself."""
    assert differs(golden, ranking(("a", 1e-4)), ranking(("b", 1e-4))) is not None
    assert differs(golden, ranking(("a", 1e-4)), ranking(("a", 1.1e-4))) is not None


def test_entries_that_tie_may_change_places(golden: GoldenRecord) -> None:
    reference = ranking(("a", 0.3001), ("b", 0.3), ("c", 0.1))
    assert differs(golden, reference, ranking(("b", 0.30005), ("a", 0.30004), ("c", 0.1))) is None
    assert differs(golden, reference, ranking(("b", 0.3), ("b", 0.3), ("c", 0.1))) is not None


def test_rankings_of_reduced_precisions_are_left_to_the_argmax(golden: GoldenRecord) -> None:
    assert differs(golden, ranking(("a", 0.5)), ranking(("b", 0.4)), INT8) is None


def test_long_values_are_cut_in_the_message(golden: GoldenRecord) -> None:
    message = differs(golden, "x" * 5000, "y" * 5000)
    assert message is not None
    assert len(message) < 600


def part(label: str, mask: Any) -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.asarray(mask)).save(file, "PNG")
    return {"score": None, "label": label, "mask": base64.b64encode(file.getvalue()).decode()}


def test_parts_of_an_image_may_differ_in_a_thousandth_of_the_pixels(golden: GoldenRecord) -> None:
    sky = np.zeros((100, 100), dtype=np.bool_)
    sky[:50] = True
    parts = [part("sky", sky), part("sea", ~sky)]
    assert differs(golden, parts, parts) is None
    near = sky.copy()
    near[50, :10] = True
    assert differs(golden, parts, [part("sky", near), part("sea", ~near)]) is None
    near[50, 10] = True
    assert str(differs(golden, parts, [part("sky", near), part("sea", ~near)])).endswith(
        "expected at most 0.10% of the pixels with another label, got 0.11%"
    )
    assert differs(golden, parts, [part("sky", near), part("sea", ~near)], INT8) is None


def test_parts_in_another_order_of_another_size_or_unreadable_differ(golden: GoldenRecord) -> None:
    sky = np.eye(60, dtype=np.bool_)
    parts = [part("sky", sky), part("sea", ~sky)]
    assert differs(golden, parts, parts[::-1]) is not None
    assert differs(golden, parts, [part("sea", sky), part("sky", ~sky)]) is not None
    assert "masks of [(60, 60)] pixels" in str(differs(golden, parts, [part("sky", sky[:30])]))
    assert "cannot be read" in str(differs(golden, parts, [{**parts[0], "mask": "AAAA"}, parts[1]]))
    assert differs(golden, parts, [{**parts[0], "score": 0.5}, parts[1]]) is not None
    speck = np.zeros((60, 60), dtype=np.bool_)
    speck[0, 0] = True
    with_speck = [*parts[:1], part("sea", ~sky ^ (speck & ~sky)), part("gull", speck & ~sky)]
    assert differs(golden, parts, with_speck) is None  # a part that is all edge


def objects(*scores: float, label: str = "cat", xmin: int = 10) -> list[dict[str, Any]]:
    box = {"xmin": xmin, "ymin": -2, "xmax": 80, "ymax": 90}
    return [{"score": score, "label": label, "box": box} for score in scores]


@pytest.mark.parametrize(
    ("expected", "got", "threshold"),
    [
        (objects(0.9, 0.7), objects(0.9005, 0.7), 0.5),
        (objects(0.9), objects(0.9, xmin=11), 0.5),
        (objects(0.9, 0.5003), objects(0.9), 0.5),
        (objects(0.9), objects(0.5003, 0.9), None),
        (objects(0.9), objects(0.9, 0.2001), 0.2),
        (objects(0.5001), [], None),
        ([], objects(0.5001), None),
    ],
)
def test_objects_may_lie_a_pixel_away_and_lack_one_at_the_threshold(
    golden: GoldenRecord, expected: Any, got: Any, threshold: float | None
) -> None:
    parameters = {} if threshold is None else {"threshold": threshold}
    request = replace_request(golden.cases[0].request, parameters)
    for one, other in ((expected, got), ([expected, expected], [got, got])):
        case = replace(golden.cases[0], request=request, result=one)
        assert compare_result(case, other, FP32) is None


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (objects(0.9), objects(0.9, xmin=12)),
        (objects(0.9), objects(0.9, label="dog")),
        (objects(0.9), objects(0.91)),
        (objects(0.9), objects(float("nan"))),
        (objects(0.9, 0.7), objects(0.9)),
        (objects(0.9), objects(0.9, 0.7)),
        (objects(0.9, 0.7), objects(0.7, 0.9)),
        (objects(0.9), []),
        ([], objects(0.9)),
        (objects(0.9), [{"score": 0.9, "label": "cat", "box": {}}]),
        (objects(0.9), [{"score": 0.9, "label": "cat"}]),
    ],
)
def test_other_objects_differ(golden: GoldenRecord, expected: Any, got: Any) -> None:
    case = replace(golden.cases[0], result=expected)
    assert "differs" in str(compare_result(case, got, FP32))


def test_objects_of_reduced_precisions_are_left_to_the_outputs(golden: GoldenRecord) -> None:
    case = replace(golden.cases[0], result=objects(0.9))
    assert compare_result(case, objects(0.7, xmin=30), INT8) is None


def replace_request(request: InferenceRequest, parameters: dict[str, Any]) -> InferenceRequest:
    return msgspec.structs.replace(request, parameters=parameters)


def test_where_the_outputs_are_the_answer_each_is_held_as_one_vector(golden: GoldenRecord) -> None:
    outputs = {"y": np.array([[0.5, -2e-5]], dtype=np.float32), "kept": np.array([True, False])}
    case = replace(golden.cases[0], outputs=outputs, result=None)
    right = {"y": [[0.5, -2e-5]], "kept": [True, False]}
    assert compare_result(case, right, FP32) is None
    # The sign of what is nearly nothing says nothing, and the direction of the whole is kept.
    assert compare_result(case, right | {"y": [[0.5, 2e-5]]}, INT8) is None
    for wrong, words in (
        ({"y": [[0.51, 0.0]]}, "result.y[0] differs from the framework's: expected 0.5, got 0.51"),
        ({"y": [0.5, 0.0]}, "expected shape [1, 2], got shape [2]"),
        ({"y": [[0.5], [0.5, 1.0]]}, "result.y differs"),
        ({"y": [["a", "b"]]}, "expected numbers, got str"),
        ({"kept": [True, True]}, "expected [True, False], got [True, True]"),
    ):
        assert words in str(compare_result(case, right | wrong, FP32))
    assert "expected kept, y, got y" in str(compare_result(case, {"y": right["y"]}, FP32))
    assert "result differs" in str(compare_result(case, [1.0], FP32))
