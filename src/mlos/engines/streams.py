"""One model opened twice: for a run that is alone, and for several at once.

A run with all threads is over sooner. But its threads wait for each other at every operator, and for whoever
computes on their cores meanwhile; runs side by side with a part of the threads each wait less, so that more are
done in the same time. So what comes alone is computed by all threads, and what comes beside another is not.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from numpy.typing import NDArray

from mlos.engines.engine import Engine, interruptible
from mlos.errors import RefusedError
from mlos.model import Artifact, ModelFormat, Tensors


class Streams:
    """The engine ``alone`` for a run beside which there is none, and ``beside`` for all others."""

    formats: ClassVar[frozenset[ModelFormat]] = frozenset()

    def __init__(self, alone: Engine, beside: Engine) -> None:
        self.alone, self.beside = alone, beside
        self._lock = threading.Lock()
        self._under_way = 0

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Self:
        """Not how it comes about: both engines are opened before it."""
        raise RefusedError("a model for several streams is opened engine by engine", field="streams")

    @property
    def name(self) -> str:
        """What both are called."""
        return self.alone.name

    @property
    def version(self) -> str:
        """Version of their library."""
        return self.alone.version

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """See :class:`mlos.engines.Engine`."""
        with self._lock:
            self._under_way += 1
            engine = self.alone if self._under_way == 1 else self.beside
        try:
            return engine.run(inputs, outputs)
        finally:
            with self._lock:
                self._under_way -= 1

    def interrupt(self, thread: int) -> None:
        """See :class:`mlos.engines.InterruptibleEngine`; an engine that cannot be interrupted goes on."""
        for engine in (self.alone, self.beside):
            if interruptible(engine):
                engine.interrupt(thread)
