"""Engines: what opens a package's artifact and runs tensors through it.

Each is a class behind the small protocol :class:`Engine`, found through the entry-point group
``mlos.engines.v1``, the built-in ones included. Importing an engine's module imports none of its native
libraries; opening an artifact does. :func:`open_model` opens what a package holds: one file, or the parts of a
model of several graphs behind the same protocol.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

from mlos.engines.decoding import Cohorts
from mlos.engines.encoder_decoder import PARTS, EncoderDecoder
from mlos.engines.engine import CompilingEngine, Engine, InterruptibleEngine, compiles, interruptible
from mlos.engines.gguf_vocabulary import vocabulary_of
from mlos.engines.inputs import check_inputs, check_outputs
from mlos.engines.language import (
    LanguageModel,
    Places,
    Sampling,
    Sequences,
    Shared,
    SharedLanguageModel,
    Vocabulary,
)
from mlos.engines.llama_cpp_encoder import LlamaCppEncoder, is_encoder
from mlos.engines.side_by_side import SideBySide, asked_of
from mlos.engines.streams import Streams
from mlos.errors import RefusedError
from mlos.model import Artifact

GROUP = "mlos.engines.v1"
_LIBRARIES = {"llama-cpp": "llama-cpp-python"}
"""Distribution of a built-in engine's library, where it is not called as the engine is."""

__all__ = [
    "GROUP",
    "Cohorts",
    "CompilingEngine",
    "EncoderDecoder",
    "Engine",
    "InterruptibleEngine",
    "LanguageModel",
    "Places",
    "Sampling",
    "Sequences",
    "Shared",
    "SharedLanguageModel",
    "SideBySide",
    "Streams",
    "Vocabulary",
    "asked_of",
    "check_inputs",
    "check_outputs",
    "compiles",
    "default_engine",
    "engine_for",
    "engines_for",
    "installed",
    "interruptible",
    "library_bytes",
    "open_model",
    "vocabulary_of",
]


def open_model(
    folder: Path,
    artifact: Artifact,
    threads: int,
    *,
    engine: str | None = None,
    precision: str | None = None,
    cache: Path | None = None,
    streams: int = 1,
) -> Engine:
    """Open ``artifact`` of the package in ``folder``, each run of it to be computed by ``threads`` threads.

    ``engine`` is its name among the entry points; None takes the default for the format. An engine that
    compiles computes an fp32 file in ``precision`` (None: its own) and keeps what it compiled in ``cache``;
    it computes as many runs at once as there are ``streams``, where any other computes all that are called.

    Raises:
        MissingExtraError: if an engine's library is not installed.
        RefusedError: if no engine opens it, or not in this precision, or a file cannot be loaded or is not what
            was declared.
    """
    if is_encoder(artifact) and engine in (None, "llama-cpp"):
        return LlamaCppEncoder.open(folder, artifact, threads)

    def opened(part: Artifact) -> Engine:
        kind, computed = engine_for(part, engine), precision or part.precision
        if computed != part.precision and not (compiles(kind) and part.precision == "fp32"):
            raise RefusedError(
                f"{kind.name} computes {part.path} in its own precision, {part.precision}, not in {computed}",
                field="precision",
                expected=part.precision,
                got=computed,
            )
        if compiles(kind):
            # A file in another precision is one of storage, or holds its own operators: computed as it is.
            asked = computed if part.precision == "fp32" else "fp32"
            return kind.compiled(folder, part, threads, precision=asked, cache=cache, streams=streams)
        return kind.open(folder, part, threads)

    if not artifact.parts:
        return opened(artifact)
    parts = {name: opened(part) for name, part in artifact.parts.items()}
    return EncoderDecoder(artifact, parts) if set(parts) == PARTS else SideBySide(artifact, parts)


def engines_for(artifact: Artifact) -> dict[str, type[Engine]]:
    """The installed engines that open artifacts of this format, by name; the first is the default.

    That is a built-in one where there is one: what else is installed beside it has to be chosen.
    """
    found = []
    for point in entry_points(group=GROUP):
        kind: type[Engine] = point.load()
        if artifact.format in kind.formats:
            found.append((not point.value.startswith("mlos."), point.name, kind))
    return {name: kind for _, name, kind in sorted(found, key=lambda item: item[:2])}


def default_engine(artifact: Artifact) -> str:
    """Name of the default engine for artifacts of this format; that of the parts, where it has parts.

    Raises:
        RefusedError: if no installed engine opens it.
    """
    engine_for(artifact)
    return next(iter(engines_for(artifact)))


def library_bytes(artifact: Artifact, engine: str | None = None) -> int:
    """Memory that an engine's library takes before it opens ``artifact``, of one that takes unusually much.

    Such an engine says so in ``library_bytes``; without a name it is the default's. Nothing of one that is not
    installed, which whoever opens it will be told.
    """
    known = engines_for(artifact)
    kind = known.get(engine) if engine is not None else next(iter(known.values()), None)
    return int(getattr(kind, "library_bytes", 0))


def installed() -> dict[str, str]:
    """Version of the library behind each engine that is installed; of one that comes with it, its own."""
    found = {}
    for point in entry_points(group=GROUP):
        ours = point.value.startswith("mlos.")
        try:
            if ours:
                found[point.name] = version(_LIBRARIES.get(point.name, point.name))
            elif point.dist is not None:
                found[point.name] = point.dist.version
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return found


def engine_for(artifact: Artifact, name: str | None = None) -> type[Engine]:
    """The engine called ``name`` if it opens artifacts of this format; without a name the default.

    Raises:
        RefusedError: if there is none.
    """
    known = engines_for(artifact)
    if name is None and known:
        return next(iter(known.values()))
    if name in known:
        return known[name]
    if name is not None:
        raise RefusedError(
            f"no installed engine called {name} opens {artifact.format} files",
            field="engine",
            expected=", ".join(known) or "an engine for this format",
            got=name,
        )
    formats = {each for point in entry_points(group=GROUP) for each in point.load().formats}
    raise RefusedError(
        f"no installed engine opens {artifact.format} files",
        field="format",
        expected=", ".join(sorted(formats)),
        got=artifact.format,
    )
