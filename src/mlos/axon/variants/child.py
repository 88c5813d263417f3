"""The child of :mod:`mlos.axon.variants`: writes a model in another form, confined like a conversion."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlos.axon.variants.onnx_forms import quantized, save, stored
from mlos.axon.variants.static_int8 import calibrated
from mlos.errors import RefusedError
from mlos.host.child import Emit, serve
from mlos.model import Artifact, Calibration, Manifest


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Write the variant of the model in ``request["source"]``; returns the fields of ``Written``."""
    source, output = Path(request["source"]), Path(request["output"])
    manifest, precision = Manifest.model_validate(request["manifest"]), str(request["precision"])
    if request["program"]:
        return _program(source, output, manifest)
    if manifest.artifact.format == "gguf":
        return _gguf(source, output, manifest, precision, emit)
    if request["static"]:
        return _static(source, output, manifest, precision, emit)
    return _onnx(source, output, manifest, precision)


def _onnx(source: Path, output: Path, manifest: Manifest, precision: str) -> dict[str, Any]:
    whole = manifest.artifact
    graphs = [part for part in (whole, *whole.parts.values()) if part.path is not None]
    changed, files = 0, []
    for graph in graphs:
        assert graph.path is not None
        if precision != "int8":
            changed += stored(source / graph.path, output / graph.path, precision)
        else:
            changed += quantized(source / graph.path, output / graph.path)
        files += [(graph.path, "graph"), (f"{graph.path}.data", "weights")]
    if not changed:
        raise _nothing(manifest, precision, f"axon quantize {manifest.name} --precision int8 --static")
    artifact = whole.model_copy(
        update={
            "precision": precision,
            "parts": {
                name: part.model_copy(update={"precision": precision}) for name, part in whole.parts.items()
            },
        }
    )
    return _written(artifact, files, _onnx_tools())


def _program(source: Path, output: Path, manifest: Manifest) -> dict[str, Any]:
    import torch
    import transformers

    from mlos.axon.convert.families import load
    from mlos.axon.convert.family import settle_framework
    from mlos.axon.convert.pt2_export import to_pt2

    settle_framework()
    family = load(source, manifest.tasks)
    with tempfile.TemporaryDirectory() as scratch:  # tokenizer and configuration stay the original's
        made = family.write(Path(scratch), to_pt2, lambda _: None)
        files = [(path, role) for path, role in made.files if role in ("graph", "weights")]
        for path, _ in files:
            shutil.move(Path(scratch, path), output / path)
    tools = {"torch": torch.__version__, "transformers": transformers.__version__, **made.tools}
    return _written(made.artifact, files, tools)


def _static(source: Path, output: Path, manifest: Manifest, precision: str, emit: Emit) -> dict[str, Any]:
    artifact, path = manifest.artifact, str(manifest.artifact.path)  # of a model of one graph

    def progress(done: int, total: int) -> None:
        emit({"done": 1} if done else {"total": total})

    # The tasks read their files in the output's folder: what does not change lies there already.
    made = calibrated(source / path, output, manifest, progress)
    if made.calibration is None:
        raise _nothing(manifest, precision, None)
    save(made.model, output / path)
    files = [(path, "graph"), (f"{path}.data", "weights")]
    return _written(
        artifact.model_copy(update={"precision": precision}), files, _onnx_tools(), made.calibration
    )


def _nothing(manifest: Manifest, precision: str, hint: str | None) -> RefusedError:
    return RefusedError(
        f"{manifest.name} holds no matrices that {precision} is for",
        field="precision",
        expected="a model of matrix products",
        got=str(manifest.architecture),
        hint=hint,
    )


def _onnx_tools() -> dict[str, str]:
    import onnx
    import onnxruntime  # type: ignore[import-untyped]  # it ships no types

    return {"onnx": onnx.__version__, "onnxruntime": str(onnxruntime.__version__)}


def _gguf(source: Path, output: Path, manifest: Manifest, precision: str, emit: Emit) -> dict[str, Any]:
    import llama_cpp

    from mlos.axon.convert.gguf_files import WRITTEN, quantize, write_gguf
    from mlos.engines.llama_cpp import language_model

    path = manifest.artifact.path or "model.gguf"
    vocabulary = manifest.artifact.outputs[0].shape[-1]
    assert isinstance(vocabulary, int)  # of a language model
    name = str(manifest.architecture)
    if precision in WRITTEN:
        write_gguf(source, output / path, precision, name)
    else:
        between = output / "between.gguf"
        write_gguf(source, between, "F16", name)
        quantize(
            between,
            output / path,
            precision,
            lambda total: emit({"total": total}),
            lambda done: emit({"done": done}),
        )
        between.unlink()
    tools = {"llama-cpp-python": str(llama_cpp.__version__)}
    return _written(language_model(path, precision, vocabulary), [(path, "weights")], tools)


def _written(
    artifact: Artifact,
    files: Sequence[tuple[str, str]],
    tools: dict[str, str],
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    return {
        "artifact": artifact.model_dump(mode="json"),
        "files": files,
        "tools": tools,
        "calibration": calibration.model_dump(mode="json") if calibration else None,
    }


if __name__ == "__main__":
    serve(main)
