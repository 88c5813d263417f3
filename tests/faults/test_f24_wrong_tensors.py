"""F24: a tensor of wrong shape, type or name, one missing and one too many are each a 400 that names it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.core.conftest import Server


@pytest.mark.parametrize(
    ("request_", "field", "expected", "got"),
    [
        ({"inputs": {"x": [[1, 2, 3]]}, "text": "a"}, None, "one of", "text and inputs"),
        ({"inputs": {"x": [[1, 2]]}}, "inputs.x", "FP32 ['rows', 3]", "shape [1, 2]"),
        ({"inputs": {"x": [[1, 2, "a"]]}}, "inputs.x", "FP32", "elements of type"),
        ({"inputs": {"x": [[1, 2], [3]]}}, "inputs.x", "FP32", "ragged"),
        ({"inputs": {}}, "inputs.x", None, None),
        ({"inputs": {"x": [[1, 2, 3]], "z": [1]}}, "inputs.z", None, None),
        ({"inputs": {"x": [[1, 2, 3]]}, "outputs": ["q"]}, None, None, None),
        ({"inputs": {"x": [[1, 2, 3, 4]]}}, "inputs.x", "FP32 ['rows', 3]", "shape [1, 4]"),
        ({"inputs": {"x": [1, 2, 3]}}, "inputs.x", "FP32 ['rows', 3]", "shape [3]"),
        ({"inputs": {"X": [[1, 2, 3]]}}, "inputs.x", None, None),
    ],
)
def test_what_is_wrong_is_named_with_what_was_expected(
    shared: Server, request_: Any, field: str | None, expected: str | None, got: str | None
) -> None:
    answer = shared.infer("double", request_)
    assert answer.status == 400, answer.body
    error = answer.error
    assert error["message"]
    if field is not None:
        assert error["field"] == field
    assert (expected or "") in (error["expected"] or "")
    assert (got or "") in (error["got"] or "")


def v2(**changed: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    return {"inputs": [tensor | changed]}


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (v2(shape=[1, 2], data=[1, 2]), ["x", "3", "[1, 2]"]),
        (v2(datatype="INT64"), ["x", "FP32", "INT64"]),
        (v2(name="z"), ["x", "z"]),
        (v2(data=[1, 2]), ["x", "2"]),
        ({"inputs": []}, ["x"]),
        ({"inputs": v2()["inputs"] * 2}, ["x"]),
        ({"inputs": v2()["inputs"] + v2(name="z")["inputs"]}, ["z"]),
    ],
)
def test_in_v2_as_well(shared: Server, request_: Any, named: list[str]) -> None:
    answer = shared.request("POST", "/v2/models/double/infer", json.dumps(request_).encode())
    assert answer.status == 400, answer.body
    for word in named:
        assert word in answer.json["error"]
    right = shared.request("POST", "/v2/models/double/infer", json.dumps(v2()).encode())
    assert right.json["outputs"][0]["data"] == [2.0, 4.0, 6.0]
