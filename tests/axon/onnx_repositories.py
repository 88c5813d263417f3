"""Repositories as the optimum exporter leaves them: a graph in ``onnx/`` beside configuration and tokenizer."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import onnx
from tests.small import Small

WEIGHTS = (".safetensors", ".bin")


def published(
    small: Small, name: str, folder: Path, *, rename: Mapping[str, str] | None = None, free: bool = True
) -> Path:
    """The small variant of a model in ``folder``, its converted graph in place of its weights.

    ``rename`` gives outputs other names; with ``free`` no axis of an input or output has a length, as
    exporters write them that ask nobody.
    """
    shutil.copytree(small.repository(name), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    model = onnx.load(small.converted(name)[0] / "model.onnx")
    for node in model.graph.node:
        node.output[:] = [(rename or {}).get(each, each) for each in node.output]
        node.input[:] = [(rename or {}).get(each, each) for each in node.input]
    for value in (*model.graph.input, *model.graph.output):
        value.name = (rename or {}).get(value.name, value.name)
        for at, axis in enumerate(value.type.tensor_type.shape.dim):
            if free and axis.dim_value:
                axis.dim_param = f"{value.name}_dim_{at}"
    (folder / "onnx").mkdir()
    onnx.save(model, folder / "onnx" / "model.onnx")
    return folder
