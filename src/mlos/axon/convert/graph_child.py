"""The child that fits a repository's own ONNX graph to tasks, and tries them on their default requests.

It reads the configuration, tokenizer and processors with the framework, and runs the graph with our own engine
and tasks. No framework's answer is compared: the repository has no weights for one.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import msgspec

from mlos.axon.convert.family import save_tokenizer
from mlos.axon.convert.graph import Fit, fit, is_zero_shot, narrowed
from mlos.axon.convert.text_encoder import filled
from mlos.engines import Engine, open_model
from mlos.errors import InvalidInputError, RefusedError
from mlos.host.child import Emit, serve
from mlos.model import Artifact, InferenceRequest, Manifest
from mlos.tasks import Silence, tasks_of

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Fit ``request["artifact"]`` in ``request["source"]``; returns the fields of ``Fitted``."""
    warnings.simplefilter("ignore")  # of the framework, about its own future
    source, output = Path(request["source"]), Path(request["output"])
    artifact = Artifact.model_validate(request["artifact"])
    if is_zero_shot(source):
        raise RefusedError(
            "zero-shot classification is not served from a repository's own ONNX graph",
            field="architectures",
            expected="the model's SafeTensors, which are converted and proved",
            got=f"{artifact.path}",
            hint="for its tensors alone, name the graph itself: axon install file:PATH/NAME.onnx",
        )
    engine = open_model(source, artifact, request["threads"])
    try:
        fitted = fit(source, artifact)
        artifact = narrowed(engine, artifact, fitted)
        files = _write(fitted, source, output)
        _try(fitted, artifact, output, engine, request["defaults"])
    except (RefusedError, InvalidInputError) as error:
        return {"reason": error.message, "artifact": request["artifact"]}
    return {
        "artifact": artifact.model_dump(mode="json"),
        "tasks": list(fitted.facts),
        "architecture": fitted.architecture,
        "preprocessing": dict(fitted.facts),
        "files": files,
        "notes": fitted.notes,
    }


def _write(fitted: Fit, source: Path, output: Path) -> list[tuple[str, str]]:
    """Write what the tasks read, each with its role: the tokenizer as the framework has it."""
    shutil.copyfile(source / _CONFIG, output / _CONFIG)
    files = [(_CONFIG, "config")]
    if fitted.tokenizer is not None:
        save_tokenizer(fitted.tokenizer, output / _TOKENIZER)
        files.append((_TOKENIZER, "tokenizer"))
    return files


def _try(
    fitted: Fit, artifact: Artifact, folder: Path, engine: Engine, defaults: dict[str, list[dict[str, Any]]]
) -> None:
    """Answer each task's default requests; what cannot be answered raises."""
    manifest = Manifest(
        name="trial",
        reference="file:trial",
        commit="0",
        weights="local",
        source_format="onnx",
        tasks=tuple(fitted.facts),
        artifact=artifact,
        preprocessing=dict(fitted.facts),
        files=(),
    )
    tasks = tasks_of(folder, manifest)
    mask = None if fitted.tokenizer is None else fitted.tokenizer.mask_token
    for case in filled([case for task in fitted.facts for case in defaults[task]], mask):
        asked = msgspec.convert(case["request"], InferenceRequest)
        task = tasks.choose(asked)
        prepared = task.preprocess(asked)
        task.postprocess(prepared, task.compute(engine, prepared, Silence()))


if __name__ == "__main__":
    serve(main)
