"""From a framework's model to a program of torch's own operators, with its weights, in one file (``.pt2``).

``torch.export`` writes it (https://docs.pytorch.org/docs/main/export/pt2_archive.html): the graph as JSON, and
each weight as its bytes. What it would write beside them, where in whose code each node comes from and the
example's tensors as a pickle, is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from mlos.axon.convert.export import Axes, Exported, check_free
from mlos.engines.torch import FORMAT, NAMES, Names
from mlos.errors import MlosError, RefusedError
from mlos.model import Artifact, TensorSpec
from mlos.model.tensors import dtype_name

_REMARKS = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")
_FEW = 2
"""From which length on the exporter takes any for any; what it writes serves fewer too."""


def to_pt2(
    function: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    outputs: Sequence[str],
    axes: Axes,
    folder: Path,
    name: str = "model",
) -> Exported:
    """Write the program ``name.pt2``: an :class:`~mlos.axon.convert.export.Exporter`.

    Raises:
        RefusedError: if the framework cannot export this model.
    """
    function.train(False)
    path = folder / f"{name}.{FORMAT}"
    shapes = tuple(dict.fromkeys(axes.get(each, {}), torch.export.Dim.DYNAMIC) for each in inputs)
    try:
        with torch.no_grad():
            program = torch.export.export(
                function, tuple(inputs.values()), dynamic_shapes=(shapes,), strict=False
            )
        _anonymise(program)
        nodes = list(program.graph.nodes)
        taken = [node for node in nodes if node.name in set(program.graph_signature.user_inputs)]
        given = next(node for node in nodes if node.op == "output").args[0]
        lengths = [_lengths(node, program) for node in taken]
        artifact = Artifact(
            format=FORMAT,
            precision="fp32",
            path=path.name,
            inputs=_specs(inputs, taken, axes),
            outputs=_specs(outputs, given, axes),
        )
        names = msgspec.json.encode(Names(list(inputs), list(outputs), lengths)).decode()
        torch.export.save(program, path, extra_files={NAMES: names})
    except MlosError:
        raise
    except Exception as error:  # whatever it is: the exporter raises what its parts raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise RefusedError(f"torch.export cannot export this model: {reason}", field="format") from error
    return Exported(artifact, ((path.name, "weights"),), {"exporter": "torch.export"})


def _anonymise(program: torch.export.ExportedProgram) -> None:
    """Take out where each node comes from, and the tensors of the example."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for remark in _REMARKS:
                    node.meta.pop(remark, None)
    program.example_inputs = None


def _lengths(node: torch.fx.Node, program: torch.export.ExportedProgram) -> list[tuple[int, int | None]]:
    """The least and the most length of each axis of an input."""
    return [
        (length, length)
        if isinstance(length, int)
        else _bounds(program.range_constraints.get(length.node.expr))
        for length in node.meta["val"].shape
    ]


def _bounds(allowed: Any) -> tuple[int, int | None]:
    """The least and the most of a symbol's range; None is any."""
    if allowed is None:
        return 0, None
    least, most = (int(end) if end.is_Integer else None for end in (allowed.lower, allowed.upper))
    return least if least is not None and least > _FEW else 0, most


def _specs(names: Iterable[str], nodes: Iterable[torch.fx.Node], axes: Axes) -> tuple[TensorSpec, ...]:
    """What each tensor is, by the node that takes or gives it: a free axis has a symbol for a length there."""
    specs = []
    for name, node in zip(names, nodes, strict=True):
        tensor, free = node.meta["val"], axes.get(name, {})
        shape = [
            length if isinstance(length, int) else free.get(at, str(length))
            for at, length in enumerate(tensor.shape)
        ]
        check_free(name, shape, free)
        dtype = dtype_name(np.dtype(str(tensor.dtype).removeprefix("torch.")))
        specs.append(TensorSpec(name=name, dtype=dtype, shape=tuple(shape)))
    return tuple(specs)
