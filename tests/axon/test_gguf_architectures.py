"""Language models in GGUF of other architectures than Llama's are served from the file alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tests.axon.conftest import answer
from tests.small import Small

from mlos.engines import open_model
from mlos.model import InferenceRequest, Manifest
from mlos.parity import GoldenRecord, compare_outputs, require, tolerance_named
from mlos.tasks import Limits, Silence, tasks_of


@pytest.mark.parametrize(("name", "architecture"), [("gpt2", "gpt2"), ("phi-2", "phi2")])
def test_a_file_alone_answers_as_the_converted_model(
    small: Small, tmp_path: Path, name: str, architecture: str
) -> None:
    source, converted = small.converted(name)
    shutil.copyfile(source / "model.gguf", tmp_path / "alone.gguf")
    installed = answer("install", f"file:{tmp_path}/alone.gguf")
    manifest = Manifest.model_validate(answer("info", "alone")["manifest"])
    assert (manifest.architecture, manifest.parity) == (architecture, ())
    assert manifest.tasks == converted.tasks
    assert manifest.artifact == converted.artifact.model_copy(update={"path": "alone.gguf"})
    folder = Path(installed["folder"])
    engine = open_model(folder, manifest.artifact, 2)
    golden = GoldenRecord.load(source / "golden")
    outputs = {case.name: engine.run(case.inputs) for case in golden.cases}
    require(compare_outputs(golden, outputs, tolerance_named("Q4_K_M")))
    candidate = small.candidate(name, tmp_path / "candidate")
    prompt = "The ship slowly left the harbour and"
    asked = InferenceRequest(prompt=prompt, parameters={"max_tokens": 8})
    task = tasks_of(folder, manifest, Limits()).choose(asked)
    prepared = task.preprocess(asked)
    got = task.postprocess(prepared, task.compute(engine, prepared, Silence()))
    assert got == candidate.ask(prompt=prompt, parameters={"max_tokens": 8})
    assert got["usage"]["completion_tokens"] > 0
    assert all(np.isfinite(logits["logits"]).all() for logits in outputs.values())
