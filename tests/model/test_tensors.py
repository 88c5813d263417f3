from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from mlos.errors import InvalidInputError
from mlos.model import DType, TensorSpec
from mlos.model.tensors import dtype_name

IDS = TensorSpec(name="input_ids", dtype="INT64", shape=("batch", "sequence"))
IMAGE = TensorSpec(name="pixels", dtype="FP32", shape=("batch", 3))


def test_a_nested_list_becomes_an_array_of_the_declared_type() -> None:
    array = IDS.array([[1, 2, 3]])
    assert array.dtype == np.int64
    assert array.shape == (1, 3)
    assert IMAGE.array([[1, 2.5, 3]]).dtype == np.float32


@pytest.mark.parametrize(
    ("spec", "value", "got"),
    [
        (IDS, [1, 2], "shape [2]"),
        (IDS, [[1, 2], [3]], "ragged"),
        (IDS, [[1.5]], "fraction"),
        (IDS, [["a"]], "elements of type"),
        (IDS, [[None]], "elements of type"),
        (IDS, [[float("nan")]], "NaN"),
        (IDS, [[2**70]], "elements of type object"),
        (IDS, [[2.0**63, 0]], "beyond 9007199254740992"),
        (IDS, [[2**63, -1]], "beyond 9007199254740992"),
        (IMAGE, [[1, 2]], "shape [1, 2]"),
        (IMAGE, [[1e60, 0, 0]], "too large"),
        (TensorSpec(name="mask", dtype="BOOL", shape=(1,)), [2], "outside 0 to 1"),
        (TensorSpec(name="bytes", dtype="UINT8", shape=(1,)), [256], "outside 0 to 255"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(spec: TensorSpec, value: Any, got: str) -> None:
    with pytest.raises(InvalidInputError, match=spec.name) as refused:
        spec.array(value)
    assert refused.value.field == f"inputs.{spec.name}"
    assert refused.value.expected is not None
    assert got in str(refused.value.got)


def test_every_element_type_has_one_numpy_type_and_back() -> None:
    for name in get_args(DType):
        spec = TensorSpec(name="x", dtype=name, shape=())
        assert dtype_name(spec.numpy_dtype) == name
    with pytest.raises(InvalidInputError, match="object"):
        dtype_name(np.dtype(object))


@pytest.mark.parametrize("value", [7, 7.0, np.int64(7)])
def test_a_scalar_stays_without_axes(value: Any) -> None:
    array = TensorSpec(name="n", dtype="INT64", shape=()).array(value)
    assert array.shape == ()
    assert array == 7
