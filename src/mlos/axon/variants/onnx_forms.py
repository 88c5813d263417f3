"""An ONNX graph in another precision: weights stored in half, or matrix products in eight bits.

Half precision is one of storage: each large weight is kept in two bytes a number and cast to fp32 where the
graph begins, which ONNX Runtime does once, at load; its processor kernels compute in fp32.

Eight bits come in two kinds. Dynamic: weights in blocks of 32, each with a scale of its own, and what they are
multiplied with is quantized as it comes, row by row and block by block (the operator MatMulNBits), so that no
answer depends on its neighbours in a batch, as it does where one scale serves a whole batch.
Static: scales of everything on the way are fixed beforehand, from what examples showed; convolutions need it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mlos.errors import RefusedError
from mlos.model import InferenceRequest, Manifest
from mlos.parity import GoldenRecord
from mlos.tasks import tasks_of

_HALVES: dict[str, Any] = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
_LARGE = 1024
"""Numbers of a tensor from which on its precision is worth changing."""
_BLOCK = 32
_TEXTS = 32
"""Texts that a model of texts is calibrated with, beside its golden requests."""


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
    _save(model, target)
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
    _save(model, target)
    return sum(node.op_type == "MatMulNBits" for node in model.graph.node)


def calibrated(source: Path, target: Path, package: Path, manifest: Manifest) -> int:
    """Write the graph ``source`` in static int8; returns how many operators take eight bits.

    ``package`` is the folder with the tokenizer and the golden record, from which the calibration comes.

    Raises:
        RefusedError: if the libraries cannot calibrate it.
    """
    from onnxruntime.quantization import (  # type: ignore[import-untyped]  # it ships no types
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import (  # type: ignore[import-untyped]  # likewise
        quant_pre_process,
    )

    with tempfile.TemporaryDirectory() as folder:
        whole, plain, found = (Path(folder) / f"{name}.onnx" for name in ("whole", "plain", "found"))
        try:
            # As one file: the library would link to weights beside it, and refuse to read links.
            onnx.save_model(onnx.load(source), whole)
            quant_pre_process(str(whole), str(plain), skip_symbolic_shape=True)  # folds batch normalisations
            weights = {tensor.name for tensor in onnx.load(plain).graph.initializer}
            # Products of two things that pass through, such as attention's, stay in fp32.
            free = [
                node.name
                for node in onnx.load(plain).graph.node
                if node.op_type == "MatMul" and node.input[1] not in weights
            ]
            quantize_static(
                str(plain),
                str(found),
                _Reader(examples(package, manifest)),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                nodes_to_exclude=free,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except (ValueError, RuntimeError, TypeError) as error:  # what the quantizer raises where it gives up
            words = " ".join(str(error).split())[:300]
            raise RefusedError(f"ONNX Runtime cannot calibrate {manifest.name}: {words}") from error
        model = onnx.load(found)
    _save(model, target)
    return sum(node.op_type == "QuantizeLinear" for node in model.graph.node)


def examples(package: Path, manifest: Manifest) -> Iterator[dict[str, NDArray[Any]]]:
    """Inputs to calibrate with, of several lengths or pictures, other than the gate's where there are any.

    Pictures: those of the golden requests mirrored, upside down, and both. Texts: passages of the retrieval
    corpus one by one and in pairs. Anything else: the golden requests.
    """
    assert manifest.golden is not None  # nothing else becomes a variant
    cases = GoldenRecord.load(package / manifest.golden).cases
    if "pixel_values" in cases[0].inputs:
        for case in cases:
            for turned in ((3,), (2,), (2, 3)):
                yield {**case.inputs, "pixel_values": np.flip(case.inputs["pixel_values"], turned).copy()}
        return
    if cases[0].request.text is None and cases[0].request.texts is None:
        yield from (dict(case.inputs) for case in cases)
        return
    from mlos.catalogue.retrieval import retrieval

    tasks = tasks_of(package, manifest)
    texts = [passage.text for passage in retrieval().passages[:_TEXTS]]
    for number, text in enumerate(texts):
        several = " ".join(texts[number : number + 1 + number % 8])
        for each in dict.fromkeys((text, several)):
            request = InferenceRequest(text=each)
            yield dict(tasks.choose(request).preprocess(request).inputs)


class _Reader:
    """Examples one by one, as the quantizer asks for them."""

    def __init__(self, given: Iterator[dict[str, NDArray[Any]]]) -> None:
        self._given = given

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._given, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Not for us: everything is read once."""


def _save(model: onnx.ModelProto, target: Path) -> None:
    onnx.save_model(
        model, target, save_as_external_data=True, location=f"{target.name}.data", size_threshold=256
    )
