"""The protocol that every engine keeps, and what one that compiles can do beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, TypeGuard

from numpy.typing import NDArray

from mlos.model import Artifact, ModelFormat, Tensors


class Engine(Protocol):
    """An opened artifact. It may be run from several threads at once."""

    formats: ClassVar[frozenset[ModelFormat]]

    @property
    def name(self) -> str:
        """What the engine is called."""
        ...

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


class CompilingEngine(Engine, Protocol):
    """An engine that compiles files for this processor, and may compute fp32 files in other precisions.

    It may compile for the outputs that a run asks for: one graph for each set of them.
    """

    @classmethod
    def precisions(cls) -> tuple[str, ...]:
        """In which precisions, besides its own, it computes an fp32 file well on this processor.

        Raises:
            MissingExtraError: if the engine's library is not installed.
        """
        ...

    @classmethod
    def compiled(
        cls,
        folder: Path,
        artifact: Artifact,
        threads: int,
        *,
        precision: str,
        cache: Path | None,
        streams: int = 1,
    ) -> Self:
        """Load ``artifact`` as :meth:`Engine.open` does, to be computed in ``precision``.

        What was compiled is looked for in the folder ``cache``, and kept there where it can be written. So many
        runs as there are ``streams`` are computed at once, each by ``threads`` threads.
        """
        ...


class InterruptibleEngine(Engine, Protocol):
    """An engine whose runs can be ended before they are done."""

    def interrupt(self, thread: int) -> None:
        """End the run that ``thread`` is in, by its ``threading.get_ident``: that raises a ``WorkerError``."""
        ...


def interruptible(engine: Engine) -> TypeGuard[InterruptibleEngine]:
    """Whether an engine is an :class:`InterruptibleEngine`."""
    return callable(getattr(engine, "interrupt", None))


def compiles(engine: type[Engine]) -> TypeGuard[type[CompilingEngine]]:
    """Whether an engine is a :class:`CompilingEngine`."""
    return callable(getattr(engine, "compiled", None))
