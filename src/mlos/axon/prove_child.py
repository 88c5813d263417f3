"""The child of :mod:`mlos.axon.prove`: answers every case of a golden record with our tasks and engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlos.engines import open_model
from mlos.host.child import serve
from mlos.model import Manifest, ParityMeasure
from mlos.parity import Tolerance, tolerance_named
from mlos.tasks.proof import Proof


def answer(
    folder: Path,
    manifest: Manifest,
    tolerance: Tolerance,
    threads: int,
    emit: Callable[[dict[str, Any]], None],
) -> tuple[ParityMeasure, ...]:
    """Prove the package in ``folder``; the measures all passed.

    What is wrong is told from the outside in: a record that proves nothing, then the tensors a task makes, then
    the outputs of the engine, then the task's result.

    Raises:
        ParityError: at the first thing that is wrong.
    """
    proof = Proof(folder, manifest, tolerance)
    emit({"cases": len(proof.golden.cases)})
    engine = open_model(folder, manifest.artifact, threads)
    return proof.hold(engine, lambda: emit({"answered": 1}))


def _main(request: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    measures = answer(
        Path(request["folder"]),
        Manifest.model_validate(request["manifest"]),
        tolerance_named(request["tolerance"]),
        request["threads"],
        emit,
    )
    return {"measures": [measure.model_dump(mode="json") for measure in measures]}


if __name__ == "__main__":
    serve(_main)
