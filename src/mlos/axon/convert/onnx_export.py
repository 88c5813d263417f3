"""From a framework's model to an ONNX file with free axes and one file of weights beside it.

The newer exporter (``torch.export``) goes first; where it fails, TorchScript traces. Neither covers all
architectures, together they do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxscript
import torch

from mlos.axon.convert.export import Axes, Exported, check_free
from mlos.model import Artifact, TensorSpec
from mlos.model.tensors import dtype_name

_TORCHSCRIPT_OPSET = 17


def weights_beside(path: str) -> str:
    """The file of weights that belongs to the graph ``path``."""
    return f"{path}.data"


def to_onnx(
    function: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    axes: Axes,
    folder: Path,
    name: str = "model",
) -> Exported:
    """Write ``name.onnx``, and its weights beside it: an :class:`~mlos.axon.convert.export.Exporter`."""
    function.train(False)
    path, fallback = folder / f"{name}.onnx", None
    weights = weights_beside(path.name)
    with torch.no_grad():
        try:
            _export_program(function, inputs, outputs, axes, path)
        except Exception as error:  # whatever it is: the exporter raises what its parts raise
            fallback = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            for each in (path, folder / weights):
                each.unlink(missing_ok=True)
            _export_trace(function, inputs, outputs, axes, path)
    proto = onnx.load(path, load_external_data=False)
    _anonymise(proto)
    for value in (*proto.graph.input, *proto.graph.output):
        _name_axes(value, axes.get(value.name, {}))
    path.write_bytes(proto.SerializeToString(deterministic=True))
    artifact = Artifact(
        format="onnx",
        precision="fp32",
        path=path.name,
        inputs=tuple(map(_spec, proto.graph.input)),
        outputs=tuple(map(_spec, proto.graph.output)),
    )
    opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    tools = {
        "onnx": onnx.__version__,
        "onnxscript": onnxscript.__version__,
        "exporter": "torch.onnx (TorchScript)" if fallback else "torch.onnx (torch.export)",
        "opset": str(opset),
    }
    return Exported(artifact, ((path.name, "graph"), (weights, "weights")), tools, fallback)


def _export_program(
    function: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    axes: Axes,
    path: Path,
) -> None:
    names = sorted({axis for free in axes.values() for axis in free.values()})
    free = {axis: torch.export.Dim(axis) for axis in names}
    shapes = tuple({at: free[axis] for at, axis in axes.get(name, {}).items()} for name in inputs)
    program = torch.onnx.export(
        function,
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=(shapes,),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=True)


def _export_trace(
    function: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    axes: Axes,
    path: Path,
) -> None:
    torch.onnx.export(
        function,
        tuple(inputs.values()),
        path,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: dict(free) for name, free in axes.items()},
        opset_version=_TORCHSCRIPT_OPSET,
        dynamo=False,
    )
    whole = onnx.load(path)
    onnx.save_model(
        whole, path, save_as_external_data=True, location=weights_beside(path.name), size_threshold=256
    )


def _anonymise(proto: onnx.ModelProto) -> None:
    """Take out every remark: documentation strings, and metadata of model, graphs, nodes and values."""
    _clear((proto,))
    for function in proto.functions:
        _clear((function, *function.node, *function.value_info))
    pending = [proto.graph]
    while pending:
        graph = pending.pop()
        _clear((graph, *graph.input, *graph.output, *graph.value_info, *graph.initializer, *graph.node))
        for node in graph.node:
            for attribute in node.attribute:
                attribute.ClearField("doc_string")
                pending += [attribute.g] if attribute.HasField("g") else list(attribute.graphs)


def _clear(messages: Iterable[Any]) -> None:
    for message in messages:
        message.ClearField("doc_string")
        message.ClearField("metadata_props")


def _name_axes(value: onnx.ValueInfoProto, names: Mapping[int, str]) -> None:
    """Call the free axes of an input or output what they were to be called."""
    axes = value.type.tensor_type.shape.dim
    shape = [axis.dim_value if axis.HasField("dim_value") else axis.dim_param for axis in axes]
    check_free(value.name, shape, names)
    for at, name in names.items():
        axes[at].dim_param = name


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        dtype=dtype_name(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        shape=tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim),
    )
