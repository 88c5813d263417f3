"""Engines: what opens a package's artifact and runs tensors through it.

Each is a class behind the small protocol :class:`Engine`, found through the entry-point group
``mlos.engines.v1``, the built-in ones included. Importing an engine's module imports none of its native
libraries; opening an artifact does.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from numpy.typing import NDArray

from mlos.engines.inputs import check_inputs, check_outputs
from mlos.errors import RefusedError
from mlos.model import Artifact, ModelFormat, Tensors

GROUP = "mlos.engines.v1"

__all__ = ["GROUP", "Engine", "check_inputs", "check_outputs", "engine_for"]


class Engine(Protocol):
    """An opened artifact. It may be run from several threads at once."""

    name: ClassVar[str]
    formats: ClassVar[frozenset[ModelFormat]]

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        """Load ``artifact`` of the package in ``folder``, to be computed by ``threads`` threads.

        Raises:
            MissingExtraError: if the engine's library is not installed.
            RefusedError: if the file cannot be loaded, lies outside the folder or is not what was declared.
        """
        ...

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Compute the outputs named, or all of them.

        Raises:
            InvalidInputError: if the tensors are not what the artifact takes; names tensor, expected and got.
            WorkerError: if the engine itself failed.
        """
        ...

    @property
    def version(self) -> str:
        """Version of the engine's library."""
        ...


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
