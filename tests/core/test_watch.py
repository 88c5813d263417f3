"""A run of the engine that nobody waits for any more is ended, and no other."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from mlos.core.watch import Watch
from mlos.errors import DeadlineError, WorkerError
from mlos.model import Artifact, Tensors


class Endless:
    """An engine that computes until it is interrupted."""

    name = version = "endless"
    formats: ClassVar[frozenset[Any]] = frozenset()

    def __init__(self) -> None:
        self.interrupted = threading.Event()

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Endless:
        return cls()

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        assert self.interrupted.wait(30)
        self.interrupted.clear()
        raise WorkerError("interrupted")

    def interrupt(self, thread: int) -> None:
        if thread == threading.get_ident():  # whoever looks is in no run
            return
        self.interrupted.set()


def test_a_run_that_is_abandoned_is_ended_and_so_is_the_next() -> None:
    engine = Endless()
    watch = Watch(engine)
    for _ in range(2):
        looks = itertools.count()
        with pytest.raises(DeadlineError), watch.over(partial(second, looks)):
            engine.run({})
        assert next(looks) == 2


def second(looks: Iterator[int]) -> bool:
    return next(looks) == 1


def test_what_ends_by_itself_is_left_alone() -> None:
    engine = Endless()
    watch = Watch(engine)
    with watch.over(lambda: True):
        pass
    with pytest.raises(WorkerError, match="by itself"), watch.over(lambda: False):
        raise WorkerError("by itself")
    looked = threading.Event()

    def waited_for() -> bool:
        looked.set()
        return False

    with watch.over(waited_for):
        assert looked.wait(30)
    assert not engine.interrupted.is_set()


def test_an_engine_that_cannot_be_interrupted_is_not_watched() -> None:
    class Plain:
        def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
            return {"y": np.zeros(1)}

    before = threading.active_count()
    watch = Watch(Plain())  # type: ignore[arg-type]  # it has what is used
    with watch.over(lambda: True):
        assert threading.active_count() == before
