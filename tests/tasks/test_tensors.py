"""Named tensors go in as lists or arrays and come out as lists, each checked by name (F23, F24)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tests.tasks.conftest import WORDS, Package

from mlos.errors import InvalidInputError, PayloadTooLargeError, WorkerError
from mlos.model import InferenceRequest
from mlos.tasks import Limits
from mlos.tasks.tensors import RawTensors

INPUTS = {"input_ids": [[2, 5, 3]], "token_type_ids": [[0, 0, 0]], "attention_mask": [[1, 1, 1]]}


@pytest.fixture(scope="module")
def task(package: Package) -> RawTensors:
    return RawTensors(package.folder, package.manifest, Limits())


def test_lists_in_lists_out(package: Package, task: RawTensors) -> None:
    request = InferenceRequest(inputs=INPUTS)
    assert task.accepts(request)
    prepared = task.preprocess(request)
    assert {name: tensor.dtype for name, tensor in prepared.inputs.items()} == dict.fromkeys(INPUTS, np.int64)
    outputs = package.run(prepared.inputs)
    result = task.postprocess(prepared, outputs)
    assert list(result) == ["logits", "last_hidden_state"]
    assert np.shape(result["logits"]) == (1, 3, len(WORDS))
    assert json.loads(json.dumps(result, allow_nan=False)) == {
        name: tensor.tolist() for name, tensor in outputs.items()
    }


def test_arrays_are_taken_as_they_are(task: RawTensors) -> None:
    arrays = {name: np.array(value) for name, value in INPUTS.items()}
    prepared = task.preprocess(InferenceRequest(inputs=arrays))
    assert all(np.shares_memory(prepared.inputs[name], arrays[name]) for name in arrays)


def test_outputs_are_chosen(package: Package, task: RawTensors) -> None:
    wanted = ["last_hidden_state", "last_hidden_state"]
    prepared = task.preprocess(InferenceRequest(inputs=INPUTS, outputs=wanted))
    assert prepared.outputs == ("last_hidden_state",)
    assert list(task.postprocess(prepared, package.run(prepared.inputs))) == ["last_hidden_state"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"inputs": {**INPUTS, "input_ids": [[1, 2], [3]]}}, "inputs.input_ids"),
        ({"inputs": {**INPUTS, "input_ids": [["a"]]}}, "inputs.input_ids"),
        ({"inputs": {**INPUTS, "input_ids": [[0.5, 1, 2]]}}, "inputs.input_ids"),
        ({"inputs": {**INPUTS, "input_ids": [1, 2, 3]}}, "inputs.input_ids"),
        ({"inputs": {**INPUTS, "input_ids": None}}, "inputs.input_ids"),
        ({"inputs": {**INPUTS, "input_ids": {"a": 1}}}, "inputs.input_ids"),
        ({"inputs": {**INPUTS, "input_ids": np.array([object()])}}, "inputs.input_ids"),
        ({"inputs": {**INPUTS, "attention_mask": [[1, 1]]}}, "inputs.attention_mask"),
        ({"inputs": {"input_ids": [[1]]}}, "inputs.token_type_ids"),
        ({"inputs": {**INPUTS, "mood": "x"}}, "inputs.mood"),
        ({"inputs": {}}, "inputs.input_ids"),
        ({"inputs": INPUTS, "outputs": ["pooled"]}, "outputs"),
        ({"inputs": INPUTS, "outputs": []}, "outputs"),
        ({"inputs": INPUTS, "parameters": {"top_k": 1}}, "parameters.top_k"),
        ({"text": "the cat"}, "text"),
        ({"inputs": INPUTS, "text": "the cat"}, "inputs"),
    ],
)
def test_what_does_not_fit_is_named(task: RawTensors, request_: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        task.preprocess(InferenceRequest(**request_))
    assert caught.value.field == field
    assert caught.value.expected
    assert caught.value.got


def test_nan_becomes_an_error_and_never_json(package: Package, task: RawTensors) -> None:
    prepared = task.preprocess(InferenceRequest(inputs=INPUTS))
    outputs = package.run(prepared.inputs)
    outputs["last_hidden_state"][0, 0, 0] = np.nan
    with pytest.raises(WorkerError, match="'last_hidden_state'"):
        task.postprocess(prepared, outputs)
    only_logits = task.preprocess(InferenceRequest(inputs=INPUTS, outputs=["logits"]))
    assert task.postprocess(only_logits, outputs)


def test_negative_numbers_of_tokens_are_refused(task: RawTensors) -> None:
    request = InferenceRequest(inputs=INPUTS | {"input_ids": [[2, -5, 3]]})
    with pytest.raises(InvalidInputError, match="negative number -5") as caught:
        task.preprocess(request)
    assert caught.value.field == "inputs.input_ids"


def test_more_numbers_than_can_be_answered_are_refused_before_they_are_computed(
    task: RawTensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlos.tasks.tensors.MAX_VALUES", 60)
    with pytest.raises(PayloadTooLargeError, match="numbers in logits"):
        task.preprocess(InferenceRequest(inputs=INPUTS))
    task.preprocess(InferenceRequest(inputs=INPUTS, outputs=["last_hidden_state"]))
