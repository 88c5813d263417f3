"""From a verified repository folder to the files of a package and the manifest that describes them.

SafeTensors are converted; ONNX and GGUF files are taken as they are, with no framework that answers for them:
ONNX with a configuration beside it is served by the tasks that fit both, without one as tensors; a model of
texts in GGUF as what its metadata says it can do. What is not listed in
the draft is left behind: the source's weights after a conversion, and whatever nobody asked for.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlos import __version__
from mlos.axon.convert import convert
from mlos.axon.fit import Fitted, fit
from mlos.axon.sources import Resolution
from mlos.axon.sources.digests import sha256_of
from mlos.axon.sources.gguf_choice import UNSERVED_GGUF, refuse_gguf
from mlos.axon.sources.selection import is_document, is_test_data
from mlos.catalogue import Entry
from mlos.console import Console
from mlos.engines.llama_cpp import language_model
from mlos.engines.llama_cpp_encoder import encoder
from mlos.errors import CorruptError, RefusedError
from mlos.formats import Summary, Survey
from mlos.formats.gguf import FILE_TYPES
from mlos.formats.gguf_parts import parts_of, whole
from mlos.model import Artifact, FileEntry, FileRole, Manifest, ModelFormat

_PRECISIONS = {
    "FLOAT": "fp32",
    "FLOAT16": "fp16",
    "BFLOAT16": "bf16",
    "DOUBLE": "fp64",
}
_TEMPLATE = "tokenizer.chat_template"
_TOKENIZER = re.compile(
    r"(?:tokenizer.*|vocab\..*|merges\.txt|special_tokens_map\.json|added_tokens\.json|.*\.model)"
)


_ENCODERS = ("bert", "nomic-bert", "jina-bert-v2")
"""Architectures in GGUF that encode texts; each token sees all others."""
_POOLING = {1: "mean", 2: "cls"}
"""``ARCHITECTURE.pooling_type`` of GGUF (``enum llama_pooling_type``) to a way to pool; 0 says nothing."""


@dataclass(frozen=True)
class Origin:
    """What is known of a model before its files are looked at."""

    name: str
    resolution: Resolution
    entry: Entry | None

    @property
    def licence(self) -> str | None:
        """The weights' licence: for a known model its entry's, unless a hub declares one, which is newer."""
        if self.entry is not None and (self.resolution.weights != "hub" or self.resolution.licence is None):
            return self.entry.licence
        return self.resolution.licence


@dataclass(frozen=True)
class Draft:
    """The files of a package, in their folder, and all that the manifest says but hashes and parity."""

    source_format: ModelFormat
    artifact: Artifact
    tasks: tuple[str, ...]
    parameters: int
    roles: Mapping[str, FileRole]
    architecture: str | None = None
    preprocessing: Mapping[str, Any] | None = None
    tools: Mapping[str, str] | None = None
    forms: tuple[Artifact, ...] = ()
    """Artifacts on the way to this one, in the same folder; to be proved, and left behind."""

    def manifest(self, origin: Origin, folder: Path) -> Manifest:
        """The manifest, without parity; hashes every file in ``folder``."""
        golden = {path.partition("/")[0] for path, role in self.roles.items() if role == "golden"}
        return Manifest(
            name=origin.name,
            reference=str(origin.resolution.reference),
            commit=origin.resolution.commit,
            weights=origin.resolution.weights,
            licence=origin.licence,
            architecture=self.architecture or (origin.entry.architecture if origin.entry is not None else None),
            parameters=self.parameters,
            source_format=self.source_format,
            tasks=self.tasks,
            artifact=self.artifact,
            preprocessing=dict(self.preprocessing or {}),
            golden=min(golden, default=None),
            files=tuple(
                FileEntry(
                    path=path,
                    size=(folder / path).stat().st_size,
                    sha256=sha256_of(folder / path),
                    role=role,
                )
                for path, role in sorted(self.roles.items())
            ),
            tools={**(self.tools or {}), "mlos": __version__},
        )


def convert_to_draft(
    origin: Origin, source: Path, folder: Path, console: Console, readers: Mapping[str, str]
) -> Draft:
    """Convert the SafeTensors repository ``source`` into ``folder``; its documents come along.

    ``readers`` are the versions of what made SafeTensors of pickles, where the weights came as such.
    """
    entry = origin.entry
    requests = [(case.name, case.request) for case in entry.golden] if entry is not None else []
    made = convert(source, folder, requests, entry.tasks if entry is not None else None, console)
    documents: dict[str, FileRole] = {path: "document" for path in _relative(source) if is_document(path)}
    _move(source, documents, folder)
    return Draft(
        source_format="pytorch" if readers else "safetensors",
        artifact=made.artifact,
        tasks=made.tasks,
        parameters=made.parameters,
        roles={**dict(made.files), **documents},
        architecture=made.architecture,
        preprocessing=made.preprocessing,
        tools={**made.tools, **readers},
        forms=made.forms,
    )


def take_as_draft(origin: Origin, source: Path, survey: Survey, folder: Path, console: Console) -> Draft:
    """Take the one ONNX or GGUF model of ``source``, all parts of it, and what belongs to it, into ``folder``.

    Test data is left: what becomes of it is :mod:`mlos.axon.zoo`'s to say.

    Raises:
        RefusedError: if there are several, or the graph is of a kind that is refused.
        MissingExtraError: if the framework, which reads a graph's configuration, is not installed.
    """
    model = survey.files[0].as_posix()
    parts = parts_of(model) if survey.format == "gguf" else (model,)
    if len(survey.files) != len(parts):
        raise RefusedError(
            f"{origin.resolution.reference.at(None)} holds {len(survey.files)} {survey.format} models",
            expected="one",
            got=", ".join(str(path) for path in survey.files[:4]),
        )
    summary = survey.summaries[0]
    if len(parts) > 1:
        found = zip((path.as_posix() for path in survey.files), survey.summaries, strict=True)
        summary = whole(dict(found), model)
    architecture = summary.metadata.get("general.architecture")
    if survey.format == "gguf" and architecture in UNSERVED_GGUF:
        raise refuse_gguf(architecture, UNSERVED_GGUF[architecture])
    vocabulary = _vocabulary(summary)
    tasks: tuple[str, ...] = ("tensors",)
    fitted: Fitted | None = None
    preprocessing: Mapping[str, Any] | None = None
    if vocabulary is not None and not _is_causal(summary):
        artifact, preprocessing = _encoder(model, summary, console)
        tasks = tuple(preprocessing)
    elif vocabulary is None:
        artifact = Artifact(
            format=survey.format,
            precision=_precision(summary),
            path=model,
            inputs=summary.inputs,
            outputs=summary.outputs,
        )
        if survey.format == "onnx" and (source / "config.json").is_file():
            fitted = fit(source, folder, artifact, console)
            artifact, tasks, architecture = fitted.artifact, fitted.tasks, fitted.architecture
            preprocessing = fitted.preprocessing
    else:
        artifact = language_model(model, _precision(summary), vocabulary)
        tasks = ("chat", "text-generation") if _TEMPLATE in summary.metadata else ("text-generation",)
    made = dict(fitted.files) if fitted is not None else {}
    left = {path.as_posix() for path in survey.ignored} | made.keys()
    roles = {
        path: _role(path, model) for path in _relative(source) if path not in left and not is_test_data(path)
    }
    _move(source, roles, folder)
    return Draft(
        source_format=survey.format,
        artifact=artifact,
        tasks=tasks,
        parameters=summary.parameters,
        roles=roles | made,
        preprocessing=preprocessing,
        architecture=architecture if isinstance(architecture, str) else None,
    )


def _is_causal(summary: Summary) -> bool:
    """Whether a model of texts in GGUF continues them; else it encodes them.

    Raises:
        RefusedError: if it does neither in a way that is served.
    """
    architecture = str(summary.metadata.get("general.architecture"))
    causal = bool(summary.metadata.get(f"{architecture}.attention.causal", True))
    if not causal and architecture not in _ENCODERS:
        raise refuse_gguf(architecture, "a model whose tokens see what comes after them")
    return causal and architecture not in _ENCODERS


def _encoder(path: str, summary: Summary, console: Console) -> tuple[Artifact, dict[str, dict[str, Any]]]:
    """The artifact of an encoder in GGUF, and its tasks with what they need to know."""
    architecture = summary.metadata["general.architecture"]

    def number(key: str, default: int | None = None) -> int:
        value = summary.metadata.get(f"{architecture}.{key}", default)
        if not isinstance(value, int) or value < (1 if default is None else 0):
            raise CorruptError(
                f"the GGUF file's {architecture}.{key} is no number", field=key, got=f"{value!r:.100}"
            )
        return value

    width, length, pooling = number("embedding_length"), number("context_length"), number("pooling_type", 0)
    if pooling not in (0, *_POOLING):
        kind = "a model that ranks texts" if pooling == 4 else f"an encoder that pools in the way {pooling}"
        raise refuse_gguf(architecture, kind)
    if pooling == 0:
        console.note("the file does not say how it pools: an embedding is the mean of its tokens'")
    facts = {"max_length": length}
    return encoder(path, _precision(summary), width), {
        "embeddings": facts | {"pooling": _POOLING.get(pooling, "mean"), "normalize": False},
        "token-embeddings": facts,
    }


def _vocabulary(summary: Summary) -> int | None:
    """How many tokens a model of texts in GGUF has; None for any other model."""
    tokens = summary.metadata.get("tokenizer.ggml.tokens")
    if summary.format != "gguf" or tokens is None:
        return None
    count = tokens.get("length") if isinstance(tokens, dict) else tokens
    count = len(count) if isinstance(count, list) else count
    if not isinstance(count, int) or isinstance(tokens, int):
        raise CorruptError(
            "the GGUF file's tokenizer.ggml.tokens is no list",
            field="tokenizer.ggml.tokens",
            expected="a list of texts",
            got=type(tokens).__name__,
        )
    return count


def _precision(summary: Summary) -> str:
    """What a GGUF file says it is; else the element type that most parameters have, by the name used here."""
    most = max(summary.element_types, key=lambda kind: (summary.element_types[kind], kind), default="FLOAT")
    if summary.format == "gguf":
        declared = summary.metadata.get("general.file_type")
        return FILE_TYPES.get(declared, most) if isinstance(declared, int) else most
    return _PRECISIONS.get(most, most.lower())


def _role(path: str, model: str) -> FileRole:
    name = path.rpartition("/")[2]
    if path == model:
        return "graph"
    if is_document(path):
        return "document"
    if _TOKENIZER.fullmatch(name):
        return "tokenizer"
    return "config" if name.endswith((".json", ".jinja")) else "weights"


def _relative(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _move(source: Path, paths: Iterable[str], folder: Path) -> None:
    for path in paths:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source / path, target)
