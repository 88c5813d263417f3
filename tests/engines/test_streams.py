"""A run that is alone is computed by one engine, and those beside it by another."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from numpy.typing import NDArray

from mlos.engines import Streams
from mlos.errors import RefusedError, WorkerError
from mlos.model import Artifact, Tensors


class Held:
    """An engine that computes until it is let go, and says where it was interrupted."""

    version = "1"
    formats: ClassVar[frozenset[Any]] = frozenset()

    def __init__(self, name: str) -> None:
        self.name = name
        self.running = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.interrupted: list[int] = []

    @classmethod
    def open(cls, folder: Path, artifact: Artifact, threads: int) -> Held:
        return cls("held")

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        self.running.release()
        assert self.go.acquire(timeout=30)
        raise WorkerError(self.name)

    def interrupt(self, thread: int) -> None:
        self.interrupted.append(thread)


def test_only_a_run_beside_which_there_is_none_is_alone() -> None:
    alone, beside = Held("alone"), Held("beside")
    streams = Streams(alone, beside)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(2):  # also after runs that have failed
            runs = [pool.submit(streams.run, {})]
            assert alone.running.acquire(timeout=30)
            runs += [pool.submit(streams.run, {}) for _ in range(2)]
            assert beside.running.acquire(timeout=30)
            assert beside.running.acquire(timeout=30)
            alone.go.release()
            assert str(runs[0].exception(30)) == "alone"
            runs.append(pool.submit(streams.run, {}))
            assert beside.running.acquire(timeout=30)  # two are still under way
            beside.go.release(3)
            assert {str(run.exception(30)) for run in runs[1:]} == {"beside"}


def test_it_is_named_and_interrupted_as_what_it_is_made_of() -> None:
    alone, beside = Held("alone"), Held("beside")
    streams = Streams(alone, beside)
    assert (streams.name, streams.version) == ("alone", "1")
    streams.interrupt(7)
    assert alone.interrupted == beside.interrupted == [7]
    with pytest.raises(RefusedError):
        Streams.open(Path(), Artifact(path="x.onnx", format="onnx", precision="fp32", inputs=(), outputs=()), 1)
