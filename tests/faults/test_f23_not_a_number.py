"""F23: NaN and infinity, in or out, are a typed error or raw bytes, and never make JSON that is none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.core.conftest import Answer, Server

SPECIAL = np.array([np.nan, np.inf, -np.inf, 1.0], np.float32)


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"inputs": {"x": [NaN]}}', "column 19"),
        (b'{"inputs": {"x": [Infinity]}}', "column 19"),
        (b'{"inputs": {"x": [-Infinity]}}', "column"),
        (b'{"inputs": {"x": [1e999]}}', "out of range"),
    ],
)
def test_in_json_they_are_a_400_that_says_where(shared: Server, body: bytes, where: str) -> None:
    answer = shared.infer("logarithm", body)
    assert answer.status == 400
    assert where in answer.error["message"]


def test_nan_out_is_a_typed_error_and_the_answer_stays_json(shared: Server) -> None:
    answer = shared.infer("logarithm", {"inputs": {"x": [1.0, -1.0]}})
    assert answer.status == 500
    assert answer.error["code"] == "worker"
    assert "NaN" in answer.error["got"]
    assert shared.infer("logarithm", {"inputs": {"x": [1.0]}}).json["result"] == {"y": [0.0]}


@pytest.mark.parametrize(("value", "name"), [(0.0, "infinit"), (-1.0, "NaN")])
def test_each_is_named_and_the_next_request_is_answered(shared: Server, value: float, name: str) -> None:
    answer = shared.infer("logarithm", {"inputs": {"x": [1.0, value]}})
    assert answer.status == 500
    assert name.lower() in answer.error["got"].lower()
    assert shared.infer("logarithm", {"inputs": {"x": [1.0]}}).status == 200


def raw(server: Server, values: np.ndarray, *, binary_out: bool) -> Answer:
    """The logarithm of raw elements, over V2."""
    head = {
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": [len(values)],
                "parameters": {"binary_data_size": values.nbytes},
            }
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": binary_out}}],
    }
    text = json.dumps(head).encode()
    length = {"Inference-Header-Content-Length": str(len(text))}
    return server.request("POST", "/v2/models/logarithm/infer", text + values.tobytes(), length)


def test_as_raw_bytes_they_go_in_and_out(shared: Server) -> None:
    with np.errstate(all="ignore"):
        expected = np.log(SPECIAL)
    answer = raw(shared, SPECIAL, binary_out=True)
    assert answer.status == 200, answer.body
    at = int(answer.headers["inference-header-content-length"])
    np.testing.assert_array_equal(np.frombuffer(answer.body[at:], np.float32), expected)
    refused = raw(shared, SPECIAL, binary_out=False)
    assert refused.status >= 400
    assert "NaN" in json.dumps(refused.json)
