"""From a framework's model to an ONNX file with free batch and sequence axes and one file of weights beside it.

The newer exporter (``torch.export``) goes first; where it fails, TorchScript traces. Neither covers all
architectures, together they do. What an exporter writes about the machine it ran on (stack traces with paths)
is taken out: the same model gives the same bytes everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch

from mlos.errors import MlosError
from mlos.model import Artifact, TensorSpec
from mlos.model.tensors import dtype_name

GRAPH, WEIGHTS = "model.onnx", "model.onnx.data"
_TORCHSCRIPT_OPSET = 17
_EXAMPLE = (2, 8)
"""Batch and sequence of the example: no axis of length 1, which an exporter could take for a constant."""


@dataclass(frozen=True)
class Exported:
    """What was written, by which exporter at which opset, and why the first exporter was not it."""

    artifact: Artifact
    exporter: str
    opset: int
    fallback: str | None


class _Flat(torch.nn.Module):
    """The model as a function of tensors: positional inputs, and the named outputs as a tuple."""

    def __init__(self, model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self._inputs, self._outputs = inputs, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return run(self.model, dict(zip(self._inputs, tensors, strict=True)), self._outputs)


def run(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], outputs: tuple[str, ...]
) -> tuple[torch.Tensor, ...]:
    """The model's ``outputs`` in that order; the last hidden state is taken from a head's hidden states too."""
    answer = model(**inputs, output_hidden_states="logits" in outputs, return_dict=True)
    return tuple(
        answer.hidden_states[-1] if name == "last_hidden_state" and "logits" in outputs else answer[name]
        for name in outputs
    )


def export(model: torch.nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...], folder: Path) -> Exported:
    """Write ``model.onnx`` and ``model.onnx.data`` into ``folder``; inputs are int64 ``[batch, sequence]``."""
    flat = _Flat(model, inputs, outputs).train(False)
    example = tuple(torch.ones(_EXAMPLE, dtype=torch.int64) for _ in inputs)
    fallback = None
    with torch.no_grad():
        try:
            _export_program(flat, example, inputs, outputs, folder / GRAPH)
        except Exception as error:  # whatever it is: the exporter raises what its parts raise
            fallback = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            for name in (GRAPH, WEIGHTS):
                (folder / name).unlink(missing_ok=True)
            _export_trace(flat, example, inputs, outputs, folder / GRAPH)
    proto = onnx.load(folder / GRAPH, load_external_data=False)
    _anonymise(proto)
    (folder / GRAPH).write_bytes(proto.SerializeToString(deterministic=True))
    artifact = Artifact(
        format="onnx",
        precision="fp32",
        path=GRAPH,
        inputs=tuple(map(_spec, proto.graph.input)),
        outputs=tuple(map(_spec, proto.graph.output)),
    )
    for spec in (*artifact.inputs, *artifact.outputs):
        if spec.shape[:2] != ("batch", "sequence"):
            raise MlosError(
                f"the export of {spec.name} lost its free axes",
                field=spec.name,
                expected="[batch, sequence, …]",
                got=str(list(spec.shape)),
            )
    exporter = "torch.onnx (TorchScript)" if fallback else "torch.onnx (torch.export)"
    opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    return Exported(artifact, exporter, opset, fallback)


def _export_program(
    flat: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    path: Path,
) -> None:
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    program = torch.onnx.export(
        flat,
        example,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_shapes=(tuple(axes for _ in inputs),),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(path, external_data=True)


def _export_trace(
    flat: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    path: Path,
) -> None:
    torch.onnx.export(
        flat,
        example,
        path,
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in (*inputs, *outputs)},
        opset_version=_TORCHSCRIPT_OPSET,
        dynamo=False,
    )
    whole = onnx.load(path)
    onnx.save_model(whole, path, save_as_external_data=True, location=WEIGHTS, size_threshold=256)


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


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    return TensorSpec(
        name=value.name,
        dtype=dtype_name(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
        shape=tuple(axis.dim_param or axis.dim_value for axis in kind.shape.dim),
    )
