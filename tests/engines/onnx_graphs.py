"""A graph small enough to be computed by hand, for the tests of the engines that open ONNX files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mlos.model import Artifact, TensorSpec

RANDOM = np.random.default_rng(0)
WORDS = RANDOM.normal(size=(10, 4)).astype(np.float32)
PLACES = RANDOM.normal(size=(6, 4)).astype(np.float32)
HEAD = RANDOM.normal(size=(4, 3)).astype(np.float32)


def lookup() -> onnx.ModelProto:
    """Tokens to word plus place vectors (``hidden``), and those to three scores (``logits``)."""
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["word"]),
        helper.make_node("Shape", ["ids"], ["length"], start=1, end=2),
        helper.make_node("Slice", ["places", "zero", "length"], ["place"]),
        helper.make_node("Add", ["word", "place"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    initializers = {"words": WORDS, "places": PLACES, "head": HEAD, "zero": np.array([0])}
    graph = helper.make_graph(
        nodes,
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])],
        [
            helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length", 4]),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", 3]),
        ],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return finished(graph)


def finished(graph: onnx.GraphProto, domains: Sequence[str] = ()) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


ARTIFACT = Artifact(
    format="onnx",
    precision="fp32",
    path="model.onnx",
    inputs=(TensorSpec(name="ids", dtype="INT64", shape=("batch", "length")),),
    outputs=(
        TensorSpec(name="hidden", dtype="FP32", shape=("batch", "length", 4)),
        TensorSpec(name="logits", dtype="FP32", shape=("batch", "length", 3)),
    ),
)


def ids(*rows: list[int]) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    return {"ids": np.array(rows, dtype=np.int64)}


WIDE = 512
MATRIX = np.random.default_rng(0).normal(size=(WIDE, 8)).astype(np.float32)
PRODUCT = Artifact(
    format="onnx",
    precision="fp32",
    path="model.onnx",
    inputs=(TensorSpec(name="x", dtype="FP32", shape=("rows", WIDE)),),
    outputs=(TensorSpec(name="y", dtype="FP32", shape=("rows", 8)),),
)


def product_graph() -> onnx.ModelProto:
    """``x`` times :data:`MATRIX`, whose sums are long enough to show in which precision they were made."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "matrix"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 8])],
        [numpy_helper.from_array(MATRIX, "matrix")],
    )
    return finished(graph)
