"""The child that converts: it loads a repository with its framework, asks it the golden requests, rewrites it.

Nothing of the repository is run: weights come from SafeTensors alone, classes from transformers alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from mlos.axon.convert.families import load
from mlos.axon.convert.family import settle_framework
from mlos.axon.convert.onnx_export import to_onnx
from mlos.host.child import Emit, serve


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Convert ``request["source"]`` into ``request["output"]``; returns the fields of ``Converted``."""
    settle_framework()
    output = Path(request["output"])

    emit({"stage": "load"})
    family = load(Path(request["source"]), request["tasks"])

    requests = request["requests"] or family.fit(request["defaults"])
    emit({"stage": "golden", "total": len(requests), "unit": "requests"})
    family.record(requests, lambda: emit({"done": 1})).save(output / "golden")

    emit({"stage": "write"})
    architecture = type(family.model).__name__
    parameters = sum(parameter.numel() for parameter in family.model.parameters())
    made = family.write(output, to_onnx, emit)
    return {
        "artifact": made.artifact.model_dump(mode="json"),
        "forms": [form.model_dump(mode="json") for form in made.forms],
        "tasks": family.tasks,
        "architecture": architecture,
        "parameters": parameters,
        "preprocessing": family.preprocessing(),
        "tools": {"torch": torch.__version__, "transformers": transformers.__version__, **made.tools},
        "files": [*made.files, ("golden/record.json", "golden"), ("golden/tensors.npz", "golden")],
    }


if __name__ == "__main__":
    serve(main)
