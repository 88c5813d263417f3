"""An ONNX graph in another precision: weights stored in half, or matrix products in eight bits.

Half precision is one of storage: each large weight is kept in two bytes a number and cast to fp32 where the
graph begins, which ONNX Runtime does once, at load; its processor kernels compute in fp32.

Eight bits come in two kinds. Here are dynamic ones: weights in blocks of 32, each with a scale of its own, and
what they are multiplied with is quantized as it comes, row by row and block by block (the operator
MatMulNBits), so that no answer depends on its neighbours in a batch, as it does where one scale serves a whole.
Static ones, which convolutions need, are made by :mod:`mlos.axon.variants.static_int8`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_HALVES: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_LARGE = 1024
"""Numbers of a tensor from which on its precision is worth changing."""
_BLOCK = 32


def stored(source: Path, target: Path, precision: str) -> int:
    """Write the graph ``source`` with its large weights stored in ``precision``; returns how many there are.

    A weight with a number that the precision cannot hold stays as it is.
    """
    model = onnx.load(source)
    graph, casts = model.graph, []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < _LARGE:
            continue
        with np.errstate(over="ignore"):  # it is looked for
            half = numpy_helper.to_array(tensor).astype(_HALVES[precision])
        if not np.isfinite(half).all():
            continue
        name = f"{tensor.name}.{precision}"
        casts.append(helper.make_node("Cast", [name], [tensor.name], to=TensorProto.FLOAT))
        graph.initializer.remove(tensor)
        graph.initializer.append(numpy_helper.from_array(half, name))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    save(model, target)
    return len(casts)


def quantized(source: Path, target: Path) -> int:
    """Write the graph ``source`` with its matrix products in dynamic int8; returns how many there are."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # type: ignore[import-untyped]  # ships no types
        MatMulNBitsQuantizer,
    )

    work = MatMulNBitsQuantizer(
        onnx.load(source),
        bits=8,
        block_size=_BLOCK,
        is_symmetric=True,
        accuracy_level=4,  # ONNX Runtime's number of int8 for what the weights are multiplied with
        op_types_to_quantize=("MatMul",),
    )
    work.process()
    model: onnx.ModelProto = work.model.model
    save(model, target)
    return sum(node.op_type == "MatMulNBits" for node in model.graph.node)


def save(model: onnx.ModelProto, target: Path) -> None:
    """Write a graph, its larger weights in a file beside it."""
    onnx.save_model(
        model, target, save_as_external_data=True, location=f"{target.name}.data", size_threshold=256
    )
