"""From a framework's model to an ONNX file with free axes and one file of weights beside it.

The newer exporter (``torch.export``) goes first; where it fails, TorchScript traces. Neither covers all
architectures, together they do. What an exporter writes about the machine it ran on (stack traces with paths)
is taken out: the same model gives the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnxscript
import torch

from mlos.errors import MlosError
from mlos.host.child import Emit
from mlos.model import Artifact, FileRole, TensorSpec
from mlos.model.tensors import dtype_name

_TORCHSCRIPT_OPSET = 17

Axes: TypeAlias = Mapping[str, Mapping[int, str]]
"""Of each input and output by name: its free axes by position, and what each is called."""


@dataclass(frozen=True)
class Exported:
    """What was written, by which exporter at which opset, and why the first exporter was not it."""

    artifact: Artifact
    exporter: str
    opset: int
    fallback: str | None

    @property
    def files(self) -> tuple[tuple[str, FileRole], ...]:
        """The graph and its weights, each with its role."""
        assert self.artifact.path is not None  # it was just written
        return (self.artifact.path, "graph"), (weights_beside(self.artifact.path), "weights")

    def tell(self, emit: Emit) -> None:
        """Warn where the first exporter failed."""
        if self.fallback:
            emit({"warning": f"exported with TorchScript; the newer exporter failed: {self.fallback}"})

    @property
    def tools(self) -> dict[str, str]:
        """Versions of what made it."""
        return {
            "onnx": onnx.__version__,
            "onnxscript": onnxscript.__version__,
            "exporter": self.exporter,
            "opset": str(self.opset),
        }


class Flat(torch.nn.Module):
    """The model as a function of tensors, in the order of ``inputs``, to a tuple of ``outputs``."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self._inputs, self._outputs = model, inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        given = self.model(**dict(zip(self._inputs, tensors, strict=True)), return_dict=True)
        return tuple(given[name] for name in self._outputs)


def weights_beside(path: str) -> str:
    """The file of weights that belongs to the graph ``path``."""
    return f"{path}.data"


def export(
    function: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    axes: Axes,
    folder: Path,
    name: str = "model.onnx",
) -> Exported:
    """Write the graph ``name``, and its weights beside it, into ``folder``.

    ``function`` takes the tensors of ``inputs`` in their order, here as an example (no free axis of length 1,
    which an exporter could take for a constant), and gives a tuple of ``outputs``.

    Raises:
        MlosError: if an axis of ``axes`` came out fixed, or another one free.
    """
    function.train(False)
    path, fallback = folder / name, None
    with torch.no_grad():
        try:
            _export_program(function, inputs, outputs, axes, path)
        except Exception as error:  # whatever it is: the exporter raises what its parts raise
            fallback = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            for each in (path, folder / weights_beside(name)):
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
        path=name,
        inputs=tuple(map(_spec, proto.graph.input)),
        outputs=tuple(map(_spec, proto.graph.output)),
    )
    exporter = "torch.onnx (TorchScript)" if fallback else "torch.onnx (torch.export)"
    opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    return Exported(artifact, exporter, opset, fallback)


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
    """Call the free axes of an input or output what they were to be called.

    Raises:
        MlosError: if others are free than those that were to be.
    """
    axes = value.type.tensor_type.shape.dim
    free = [at for at, axis in enumerate(axes) if not axis.HasField("dim_value")]
    if free != sorted(names):
        raise MlosError(
            f"the export of {value.name} has other free axes than it was to have",
            field=value.name,
            expected=str(dict(names)),
            got=str([axis.dim_param or axis.dim_value for axis in axes]),
        )
    for at, name in names.items():
        axes[at].dim_param = name


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        dtype=dtype_name(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        shape=tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim),
    )
