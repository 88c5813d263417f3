"""ONNX files for tests, made with the real library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def line(path: Path, external: str | None = None) -> Path:
    """A model y = x W with W of 4 x 2; its weights in a file ``external``, written if it is a plain name."""
    weights = np.arange(8, dtype=np.float32).reshape(4, 2)
    tensor = numpy_helper.from_array(weights, "w")
    if external is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", str(weights.nbytes))):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value
        if "/" not in external:
            (path.parent / external).write_bytes(weights.tobytes())
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "line",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    assert isinstance(model, onnx.ModelProto)
    return path
