"""Engines: what opens a package's artifact and runs tensors through it.

Each is a class behind the small protocol :class:`Engine`, found through the entry-point group
``mlos.engines.v1``, the built-in ones included. Importing an engine's module imports none of its native
libraries; opening an artifact does. :func:`open_model` opens what a package holds: one file, or the parts of a
model of several graphs behind the same protocol.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from mlos.engines.encoder_decoder import PARTS, EncoderDecoder
from mlos.engines.engine import Engine
from mlos.engines.gguf_vocabulary import vocabulary_of
from mlos.engines.inputs import check_inputs, check_outputs
from mlos.engines.language import LanguageModel, Sampling, Vocabulary
from mlos.engines.llama_cpp_encoder import LlamaCppEncoder, is_encoder
from mlos.engines.side_by_side import SideBySide, asked_of
from mlos.errors import RefusedError
from mlos.model import Artifact

GROUP = "mlos.engines.v1"

__all__ = [
    "GROUP",
    "EncoderDecoder",
    "Engine",
    "LanguageModel",
    "Sampling",
    "SideBySide",
    "Vocabulary",
    "asked_of",
    "check_inputs",
    "check_outputs",
    "engine_for",
    "open_model",
    "vocabulary_of",
]


def open_model(folder: Path, artifact: Artifact, threads: int) -> Engine:
    """Open ``artifact`` of the package in ``folder``, to be computed by ``threads`` threads.

    Raises:
        MissingExtraError: if an engine's library is not installed.
        RefusedError: if no engine opens it, or a file cannot be loaded or is not what was declared.
    """
    if is_encoder(artifact):
        return LlamaCppEncoder.open(folder, artifact, threads)
    if not artifact.parts:
        return engine_for(artifact).open(folder, artifact, threads)
    parts = {name: engine_for(part).open(folder, part, threads) for name, part in artifact.parts.items()}
    return EncoderDecoder(artifact, parts) if set(parts) == PARTS else SideBySide(artifact, parts)


def engine_for(artifact: Artifact) -> type[Engine]:
    """The installed engine that opens artifacts of this format; of several, the first by name.

    Raises:
        RefusedError: if there is none.
    """
    known: set[str] = set()
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        engine: type[Engine] = point.load()
        if artifact.format in engine.formats:
            return engine
        known |= engine.formats
    raise RefusedError(
        f"no installed engine opens {artifact.format} files",
        field="format",
        expected=", ".join(sorted(known)),
        got=artifact.format,
    )
