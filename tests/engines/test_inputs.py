"""Tensors that an artifact cannot take are refused by name, with what was expected and what came (F24)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mlos.engines import check_inputs, check_outputs
from mlos.errors import InvalidInputError
from mlos.model import TensorSpec

SPECS = (
    TensorSpec(name="ids", dtype="INT64", shape=("batch", "length")),
    TensorSpec(name="mask", dtype="INT64", shape=("batch", "length")),
    TensorSpec(name="scale", dtype="FP32", shape=("batch", 1)),
)


def tensors(**changed: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    given: dict[str, NDArray[Any] | None] = {
        "ids": np.zeros((2, 3), dtype=np.int64),
        "mask": np.ones((2, 3), dtype=np.int64),
        "scale": np.ones((2, 1), dtype=np.float32),
    }
    return {name: tensor for name, tensor in {**given, **changed}.items() if tensor is not None}


def test_what_fits_is_taken() -> None:
    check_inputs(SPECS, tensors())


@pytest.mark.parametrize(
    ("changed", "field", "expected", "got"),
    [
        ({"mask": None}, "inputs.mask", "ids, mask, scale", "ids, scale"),
        ({"mood": np.zeros(1)}, "inputs.mood", "ids, mask, scale", "ids, mask, scale, mood"),
        ({"ids": np.zeros((2, 3), dtype=np.int32)}, "inputs.ids", "INT64 ['batch', 'length']", "int32 [2, 3]"),
        ({"ids": np.zeros(3, dtype=np.int64)}, "inputs.ids", "INT64 ['batch', 'length']", "int64 [3]"),
        ({"scale": np.ones((2, 4), dtype=np.float32)}, "inputs.scale", "FP32 ['batch', 1]", "float32 [2, 4]"),
        ({"mask": np.ones((2, 4), dtype=np.int64)}, "inputs.mask", "length = 3 as in 'ids'", "length = 4"),
        ({"scale": np.ones((5, 1), dtype=np.float32)}, "inputs.scale", "batch = 2 as in 'ids'", "batch = 5"),
    ],
)
def test_what_does_not_fit_is_named(
    changed: dict[str, NDArray[Any] | None], field: str, expected: str, got: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_inputs(SPECS, tensors(**changed))
    error = caught.value
    assert (error.field, error.expected, error.got) == (field, expected, got)
    assert repr(field.removeprefix("inputs.")) in error.message


def test_nothing_at_all_is_said_so() -> None:
    with pytest.raises(InvalidInputError, match="'ids' is missing") as caught:
        check_inputs(SPECS, {})
    assert caught.value.got == "none"


def test_outputs_are_known_by_name() -> None:
    check_outputs(SPECS, ["mask", "ids"])
    with pytest.raises(InvalidInputError, match="no output 'logits'") as caught:
        check_outputs(SPECS, ["mask", "logits"])
    assert (caught.value.field, caught.value.expected) == ("outputs", "ids, mask, scale")
