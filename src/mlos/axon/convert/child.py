"""The child that converts: it loads a repository with its framework, exports it, asks it the golden requests.

Nothing of the repository is run: weights come from SafeTensors alone, classes from transformers alone.
"""

from __future__ import annotations

import inspect
import json
import logging
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxscript
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from mlos.axon.convert.embedding import EmbeddingRecipe
from mlos.axon.convert.export import export
from mlos.axon.convert.golden import Framework
from mlos.errors import RefusedError
from mlos.host.child import Emit, serve


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Convert ``request["source"]`` into ``request["output"]``; returns the fields of ``Converted``."""
    warnings.simplefilter("ignore")  # of the framework, about its own future
    torch.set_num_threads(1)  # the order of sums decides their last bits, and the golden record is hashed
    logging.getLogger("transformers").setLevel(logging.ERROR)
    source, output = Path(request["source"]), Path(request["output"])

    emit({"stage": "load"})
    loaded = load(source)
    tasks = _tasks(loaded, request["tasks"])

    emit({"stage": "export"})
    exported = export(loaded.model, loaded.inputs, loaded.outputs, output)
    if exported.fallback:
        emit({"warning": f"exported with TorchScript, because the newer exporter failed: {exported.fallback}"})

    framework = Framework(
        loaded.model, loaded.tokenizer, loaded.inputs, loaded.outputs, loaded.embedding, tasks
    )
    requests = request["requests"] or framework.fit(request["defaults"])
    emit({"stage": "golden", "total": len(requests), "unit": "requests"})
    framework.answer(requests, lambda: emit({"done": 1})).save(output / "golden")

    save_tokenizer(loaded.tokenizer, output / "tokenizer.json")
    shutil.copyfile(source / "config.json", output / "config.json")
    return {
        "artifact": exported.artifact.model_dump(mode="json"),
        "tasks": tasks,
        "architecture": type(loaded.model).__name__,
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "preprocessing": framework.preprocessing(),
        "tools": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "onnx": onnx.__version__,
            "onnxscript": onnxscript.__version__,
            "exporter": exported.exporter,
            "opset": str(exported.opset),
        },
        "files": [
            *(("model.onnx", "graph"), ("model.onnx.data", "weights")),
            *(("tokenizer.json", "tokenizer"), ("config.json", "config")),
            *(("golden/record.json", "golden"), ("golden/tensors.npz", "golden")),
        ],
    }


@dataclass(frozen=True)
class Loaded:
    """A repository in memory: its model and tokenizer, and the tensors that go in and come out."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerFast
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    embedding: EmbeddingRecipe


def load(source: Path) -> Loaded:
    """Load a repository in fp32 with eager attention.

    A repository of sentence-transformers gives its encoder; one whose configuration names a masked language
    model gives that with its head; one that names an encoder gives the encoder.

    Raises:
        RefusedError: if it is none of these, brings code, or lacks weights or a tokenizer.
    """
    config = _config(source)
    architecture = next(iter(config.get("architectures") or ()), None)
    embedding = EmbeddingRecipe.read(source)
    masked = not embedding.declared and architecture in MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()
    encoder = embedding.declared or architecture is None or architecture in _encoders()
    if not masked and not encoder:
        raise RefusedError(
            f"a {architecture} cannot be converted yet",
            field="architectures",
            expected="a masked language model or an encoder",
            got=str(architecture),
        )
    kind = transformers.AutoModelForMaskedLM if masked else transformers.AutoModel
    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, report = kind.from_pretrained(
            source,
            use_safetensors=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
            **safe,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, use_fast=True, **safe)
    except (OSError, ValueError, KeyError) as error:
        raise RefusedError(f"transformers cannot load the repository: {str(error).splitlines()[0]}") from error
    # What is missing would be filled with random numbers. The pooler is not among the outputs.
    lacking = sorted(name for name in report["missing_keys"] if "pooler" not in name.split("."))
    lacking += sorted(str(name) for name in report["mismatched_keys"])
    if lacking:
        raise RefusedError(
            f"the weights do not fit a {type(model).__name__}: {lacking[0]} is missing or of another shape",
            field=lacking[0],
        )
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        raise RefusedError("the repository's tokenizer has no tokenizer.json form", field="tokenizer")
    model.train(False)
    taken = inspect.signature(model.forward).parameters
    return Loaded(
        model=model,
        tokenizer=tokenizer,
        inputs=tuple(name for name in tokenizer.model_input_names if name in taken),
        outputs=("logits", "last_hidden_state") if masked else ("last_hidden_state",),
        embedding=embedding,
    )


def save_tokenizer(tokenizer: transformers.PreTrainedTokenizerFast, path: Path) -> None:
    """Write the tokenizer in its own JSON form, without limits of length and padding.

    Those stand in the package's preprocessing facts: they differ by task.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    path.write_text(json.dumps(state, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")


def _config(source: Path) -> dict[str, Any]:
    try:
        config = json.loads((source / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise RefusedError(
            f"the repository has no readable config.json: {error}", field="config.json"
        ) from error
    if not isinstance(config, dict):
        raise RefusedError("config.json is not a JSON object", field="config.json")
    if "auto_map" in config:
        raise RefusedError(
            "config.json asks for code of the repository (auto_map), which is never run", field="config.json"
        )
    return config


def _encoders() -> set[str]:
    names: set[str] = set()
    for value in MODEL_MAPPING_NAMES.values():
        names.update((value,) if isinstance(value, str) else value)
    return names


def _tasks(loaded: Loaded, wanted: list[str] | None) -> list[str]:
    able = ["fill-mask", "embeddings"] if "logits" in loaded.outputs else ["embeddings"]
    if loaded.tokenizer.mask_token is None and "fill-mask" in able:
        able.remove("fill-mask")
    for task in wanted or ():
        if task not in able:
            raise RefusedError(
                f"a {type(loaded.model).__name__} cannot do {task}",
                field="tasks",
                expected=", ".join(able),
                got=task,
            )
    return wanted or able


if __name__ == "__main__":
    serve(main)
