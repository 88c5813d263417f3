"""ONNX files of all kinds behind one server: opsets, axes, element types; and what cannot be served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.acceptance.conftest import Served, serving

from mlos.axon.install import install
from mlos.console import Console, OutputFormat, ProgressMode
from mlos.errors import RefusedError
from mlos.settings import Settings
from mlos.store import Package

WEIGHTS = np.random.default_rng(2).normal(size=(4, 3)).astype(np.float32)
Axis = int | str


def graph(
    nodes: Sequence[onnx.NodeProto],
    given: dict[str, tuple[int, Sequence[Axis]]],
    made: dict[str, tuple[int, Sequence[Axis]]],
    constants: dict[str, np.ndarray[Any, Any]] | None = None,
) -> onnx.GraphProto:
    """A graph of tensors by name, each with its element type and axes."""
    inputs, outputs = (
        [helper.make_tensor_value_info(name, kind, list(axes)) for name, (kind, axes) in side.items()]
        for side in (given, made)
    )
    held = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    return helper.make_graph(list(nodes), "graph", inputs, outputs, held)


def line(opset: int, rows: Axis = "n") -> onnx.ModelProto:
    """``y`` = the row sums of ``x W``, written as that opset writes them."""
    constants: dict[str, np.ndarray[Any, Any]] = {"w": WEIGHTS}
    if opset < 13:  # from there on the axes are an input
        last = helper.make_node("ReduceSum", ["xw"], ["y"], axes=[1], keepdims=0)
    else:
        last = helper.make_node("ReduceSum", ["xw", "axes"], ["y"], keepdims=0)
        constants["axes"] = np.array([1])
    body = graph(
        [helper.make_node("MatMul", ["x", "w"], ["xw"]), last],
        {"x": (TensorProto.FLOAT, [rows, 4])},
        {"y": (TensorProto.FLOAT, [rows])},
        constants,
    )
    return finished(body, opset)


def finished(body: onnx.GraphProto, opset: int = 17, *domains: str) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(body, opset_imports=opsets, ir_version=8)


def simple(operator: str, given: dict[str, int], made: int) -> onnx.ModelProto:
    """One node over tensors of free length."""
    return finished(
        graph(
            [helper.make_node(operator, list(given), ["y"])],
            {name: (kind, ["n"]) for name, kind in given.items()},
            {"y": (made, ["n"])},
        )
    )


FILES = {
    **{f"opset-{opset}": line(opset) for opset in (7, 11, 13, 17, 21)},
    "fixed": line(17, rows=1),
    "external": line(17),
    "halves": simple("Add", {"x": TensorProto.FLOAT16, "z": TensorProto.FLOAT16}, TensorProto.FLOAT16),
    "wholes": simple("Mul", {"x": TensorProto.INT64, "z": TensorProto.INT64}, TensorProto.INT64),
    "choices": finished(
        graph(
            [
                helper.make_node("Where", ["mask", "x", "z"], ["y"]),
                helper.make_node("Not", ["mask"], ["other"]),
            ],
            {
                "mask": (TensorProto.BOOL, ["n"]),
                "x": (TensorProto.DOUBLE, ["n"]),
                "z": (TensorProto.DOUBLE, [1]),
            },
            {"y": (TensorProto.DOUBLE, ["n"]), "other": (TensorProto.BOOL, ["n"])},
        )
    ),
}


def package(home: Path, folder: Path, name: str, model: onnx.ModelProto) -> Package:
    """Install ``model`` as a file of its own."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.onnx"
    if name == "external":
        # What a graph's own shapes hang on must stay inside: the engine looks for it nowhere else.
        onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    else:
        path.write_bytes(model.SerializeToString())
    quiet = Console(OutputFormat.QUIET, ProgressMode.NONE)
    return install(f"file:{path}", Settings(home=home), quiet).package


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("files")
    for name, model in FILES.items():
        package(home, home / "in", name, model)
    with serving(home, {}) as served:
        yield served


def ask(files: Served, name: str, **inputs: Any) -> httpx2.Response:
    return files.ask(name, {"inputs": inputs})


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith(("opset", "external"))])
def test_every_opset_answers_batches_of_any_size(files: Served, name: str) -> None:
    rows = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)
    for count in (1, 3):
        answer = ask(files, name, x=rows[:count].tolist())
        assert answer.status_code == 200, answer.text
        expected = (rows[:count] @ WEIGHTS).sum(1)
        np.testing.assert_allclose(answer.json()["result"]["y"], expected, rtol=1e-5, atol=1e-6)


def test_a_graph_of_one_row_says_so_to_three(files: Served) -> None:
    assert ask(files, "fixed", x=[[1, 2, 3, 4]]).status_code == 200
    answer = ask(files, "fixed", x=[[1, 2, 3, 4]] * 3)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("invalid_input", "inputs.x")
    assert (error["expected"], error["got"]) == ("FP32 [1, 4]", "shape [3, 4]")


def test_half_precision_comes_and_goes(files: Served) -> None:
    answer = ask(files, "halves", x=[0.1, 2048], z=[0.2, 1])
    exact = np.array([0.1, 2048], np.float16) + np.array([0.2, 1], np.float16)
    assert answer.json()["result"]["y"] == exact.tolist()
    beyond = ask(files, "halves", x=[70000.0], z=[0.0])
    assert beyond.status_code == 400
    assert "too large for the element type" in beyond.json()["error"]["message"]


def test_whole_numbers_stay_whole(files: Served) -> None:
    large = 3_000_000_019
    answer = ask(files, "wholes", x=[large, -7], z=[3_000_000_001, 6])
    assert answer.json()["result"]["y"] == [large * 3_000_000_001, -42]
    assert ask(files, "wholes", x=[1.5], z=[1]).status_code == 400
    assert ask(files, "wholes", x=["1"], z=[1]).status_code == 400


def test_truth_values_are_taken_as_such_or_as_0_and_1(files: Served) -> None:
    for mask in ([True, False], [1, 0]):
        answer = ask(files, "choices", mask=mask, x=[0.1, 0.2], z=[7.0])
        assert answer.json()["result"] == {"y": [0.1, 7.0], "other": [False, True]}
    refused = ask(files, "choices", mask=[2, 0], x=[0.1, 0.2], z=[7.0])
    assert refused.status_code == 400
    assert refused.json()["error"]["field"] == "inputs.mask"


REFUSED = {
    "texts": (
        simple("Identity", {"x": TensorProto.STRING}, TensorProto.STRING),
        "input 'x' is of a type that no request can carry",
    ),
    "custom": (
        finished(
            graph(
                [helper.make_node("Wobble", ["x"], ["y"], domain="com.example")],
                {"x": (TensorProto.FLOAT, ["n"])},
                {"y": (TensorProto.FLOAT, ["n"])},
            ),
            17,
            "com.example",
        ),
        "com.example:Wobble",
    ),
    "future": (line(99), "Opset 99"),
    "unknown": (simple("Wobble", {"x": TensorProto.FLOAT}, TensorProto.FLOAT), "Wobble"),
    "mistyped": (
        simple("Add", {"x": TensorProto.FLOAT, "z": TensorProto.INT64}, TensorProto.FLOAT),
        "Optype (Add) bound to different types",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_engine_cannot_take_is_refused_by_name_when_it_is_installed(tmp_path: Path, name: str) -> None:
    model, words = REFUSED[name]
    with pytest.raises(RefusedError) as caught:
        package(tmp_path / "home", tmp_path / "in", name, model)
    assert words in caught.value.message
    assert f"{name}.onnx" in caught.value.message
    assert "\n" not in caught.value.message
    assert str(tmp_path) not in caught.value.message
    packages = tmp_path / "home" / "store" / "packages"
    assert not packages.exists() or not list(packages.iterdir())
