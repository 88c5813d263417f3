"""What is asked: which model, in which forms, by how many clients, and what a right answer is.

Right is what the package's file answers in our engine, here, alone; and that engine is first held to the
package's golden record, where it has one. Requests are drawn from a seed, all
different, the same for every side.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import platformdirs
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from benchmarks.results import Written
from benchmarks.wire import Asked
from benchmarks.writing import continued, read_rate
from mlos.console import ProgressMode
from mlos.engines import LanguageModel, open_model
from mlos.errors import NotFoundError, UsageError
from mlos.host.environment import usable_cores
from mlos.model import InferenceRequest
from mlos.parity import tolerance_of
from mlos.settings import Settings
from mlos.store import Package, Store
from mlos.tasks import Silence, tasks_of
from mlos.tasks.proof import Proof
from mlos.validation import programs

_WORDS = (
    *("river", "stone", "cloud", "letter", "engine", "garden", "winter", "music", "signal", "harbour"),
    *("paper", "number", "the", "a", "of", "under", "between", "quickly", "seven", "open"),
)


@dataclass(frozen=True)
class Workload:
    """``things`` are what is timed, in a fresh process of each side in this order: (wire, clients)."""

    name: str
    model: str
    reference: str
    about: str
    things: tuple[tuple[str, int], ...]
    output: str
    requests: int
    tokens: tuple[int, int] | None = None
    """The fewest and most tokens of a text; None where tensors alone are asked about."""
    writes: int | None = None
    """Tokens that a language model is to write after a prompt of so many; None where it is no such model."""

    @property
    def even(self) -> bool:
        """Whether all requests have one shape, so that a server may compute several as one."""
        return self.tokens is None or self.tokens[0] == self.tokens[1]


_TENSORS = (("json", 1), ("json", 16), ("binary", 1), ("binary", 16))
_TINYLLAMA = "seeded/TinyLlama/TinyLlama-1.1B-Chat-v1.0"
WORKLOADS = {
    one.name: one
    for one in (
        Workload(
            "trivial", "trivial", "", "64 numbers, doubled: what a server itself costs", _TENSORS, "y", 64
        ),
        Workload(
            "minilm",
            "minilm",
            "seeded/sentence-transformers/all-MiniLM-L6-v2",
            "texts of 8 to 128 tokens: as text to an embedding, and as tensors to hidden states",
            (("text", 16), ("binary", 16)),
            "last_hidden_state",
            64,
            (8, 128),
        ),
        Workload(
            "bert",
            "bert",
            "seeded/google/bert-base-uncased",
            "texts of 128 tokens: as text to an embedding, and as tensors to hidden states",
            (("text", 1), ("text", 16), ("binary", 16)),
            "last_hidden_state",
            32,
            (128, 128),
        ),
        Workload(
            "resnet50",
            "resnet",
            "seeded/microsoft/resnet-50",
            "pixels of 224 by 224 to 1000 scores",
            (("json", 16), ("binary", 1), ("binary", 16)),
            "logits",
            16,
        ),
        Workload(
            "vit",
            "vit",
            "seeded/google/vit-base-patch16-224",
            "pixels of 224 by 224 to 1000 scores",
            (("json", 4), ("binary", 4)),
            "logits",
            16,
        ),
        Workload(
            "tinyllama",
            "tinyllama",
            _TINYLLAMA,
            "64 tokens written after a prompt of 16, alone and 8 texts at a time",
            (("openai", 1), ("openai", 8)),
            "logits",
            24,
            (16, 16),
            64,
        ),
        Workload(
            "tinyllama-prompt",
            "tinyllama",
            _TINYLLAMA,
            "a prompt of 512 tokens read, and the first token after it",
            (("openai", 1),),
            "logits",
            10,
            (512, 512),
            1,
        ),
    )
}


def workload_named(name: str) -> Workload:
    """One of :data:`WORKLOADS`.

    Raises:
        UsageError: if there is none of that name.
    """
    if name not in WORKLOADS:
        raise UsageError(
            f"no workload is called {name!r}", field="workload", expected=", ".join(WORKLOADS), got=name
        )
    return WORKLOADS[name]


def package_of(workload: Workload) -> Package:
    """The installed package; it is installed if it is not there.

    Raises:
        MlosError: if it cannot be.
    """
    store = Store(Settings().store)
    try:
        return store.find(workload.model)
    except NotFoundError:
        reference = workload.reference or f"file:{_trivial()}"
        programs.install(reference, ProgressMode.PLAIN)
        return store.find(workload.model)


def settings_of(workload: Workload, package: Package) -> dict[str, Any]:
    """What a peer needs to serve the package's file as we do."""
    manifest = package.manifest
    assert manifest.artifact.path is not None
    embeddings: Mapping[str, Any] = manifest.preprocessing.get("embeddings", {})
    texts = workload.tokens is not None and workload.writes is None
    language: dict[str, Any] = {}
    if workload.writes is not None:
        engine = open_model(package.folder, manifest.artifact, usable_cores())
        assert isinstance(engine, LanguageModel)
        language = {"context": engine.context_length, "sequences": Settings().sequences}
    return {
        **language,
        "model": str(package.folder / manifest.artifact.path),
        "threads": usable_cores(),
        "outputs": [workload.output],
        "batch": workload.even and workload.name != "trivial",
        "tokenizer": str(package.folder / "tokenizer.json") if texts else None,
        "max_length": embeddings.get("max_length", 512),
        "normalize": bool(embeddings.get("normalize", False)),
        "inputs": [spec.model_dump() for spec in manifest.artifact.inputs],
        "declared": [spec.model_dump() for spec in manifest.artifact.outputs if spec.name == workload.output],
    }


def requests_of(workload: Workload, package: Package, seed: int) -> list[Asked]:
    """The requests, each with its right answer.

    Raises:
        ParityError: if the engine here does not answer the golden record as the framework did.
    """
    manifest = package.manifest
    engine = open_model(package.folder, manifest.artifact, usable_cores())
    if manifest.golden is not None:
        Proof(package.folder, manifest, tolerance_of(manifest.artifact, "fp32")).hold(engine)
    chance, numbers = random.Random(seed), np.random.default_rng(seed)
    asked = []
    for number in range(workload.requests):
        if workload.tokens is None:
            tensors = {
                spec.name: numbers.standard_normal(
                    [
                        axis if isinstance(axis, int) else {0: 1}.get(place, 224)
                        for place, axis in enumerate(spec.shape)
                    ]
                ).astype(spec.numpy_dtype)
                for spec in manifest.artifact.inputs
            }
            asked.append(Asked(tensors, engine.run(tensors, [workload.output])))
            continue
        low, high = workload.tokens
        if workload.writes is not None:
            request = InferenceRequest(prompt="a", task="text-generation")
            task = tasks_of(package.folder, manifest).choose(request)
            size = (low, workload.writes)
            asked.append(Asked({}, {}, continued=continued(engine, task, package.name, _WORDS, size, chance)))
            continue
        length = low + round((high - low) * number / max(workload.requests - 1, 1))
        text = _text(Tokenizer.from_file(str(package.path("tokenizer.json"))), length, chance)
        request = InferenceRequest(text=text, task="embeddings")
        task = tasks_of(package.folder, manifest).choose(request)
        prepared = task.preprocess(request)
        computed = task.compute(engine, prepared, Silence())
        embedding = np.asarray(task.postprocess(prepared, computed)["embedding"], np.float32)
        right = engine.run(prepared.inputs, [workload.output])
        asked.append(Asked(prepared.inputs, right, text, embedding))
    return asked


def written_of(workload: Workload, package: Package) -> Written | None:
    """What the texts of a language model cost at the least, on this host now; None where none is long."""
    if workload.writes is None or workload.writes == 1:
        return None
    assert package.manifest.artifact.path is not None
    size = (package.folder / package.manifest.artifact.path).stat().st_size
    return Written(tokens=workload.writes, file_bytes=size, read_rate=read_rate(usable_cores()))


def _text(tokenizer: Tokenizer, length: int, chance: random.Random) -> str:
    """Words, and full stops at the end, that make just so many tokens, the special ones included."""

    def tokens(said: str) -> int:
        return len(tokenizer.encode(said).ids)

    text = chance.choice(_WORDS)
    while tokens(longer := f"{text} {chance.choice(_WORDS)}") <= length:
        text = longer
    while tokens(text) < length:
        text += " ."
    return text


def _trivial() -> Path:
    """An ONNX file that doubles its numbers, in a place that stays the same, and with it the reference."""
    shape: list[str | int | None] = ["batch", 64]
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "trivial",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    path = platformdirs.user_cache_path("mlos") / "bench" / "trivial.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
