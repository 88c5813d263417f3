"""The child of :mod:`mlos.axon.prove`: answers every case of a golden record with our tasks and engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlos.engines import Engine, open_model
from mlos.errors import ParityError
from mlos.host.child import serve
from mlos.model import Manifest, ParityMeasure, Tensors
from mlos.parity import (
    Case,
    GoldenRecord,
    Tolerance,
    compare_inputs,
    compare_outputs,
    compare_result,
    require,
    tolerance_named,
    vacuity,
)
from mlos.tasks import Prepared, Silence, Task, Tasks, tasks_of


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
    assert manifest.golden is not None, "a package without a golden record is not proven"
    golden = GoldenRecord.load(folder / manifest.golden)
    reason = vacuity(golden, tolerance)
    if reason is not None:
        raise ParityError(
            f"vacuous: {reason}; this parity could not have failed",
            hint="the weights may be untrained, or the golden requests too much alike",
        )
    emit({"cases": len(golden.cases)})
    tasks = tasks_of(folder, manifest)
    asked = {case.name: _ask(case, tasks) for case in golden.cases}
    engine = open_model(folder, manifest.artifact, threads)
    outputs: dict[str, Tensors] = {}
    for case in golden.cases:
        outputs[case.name] = _run(engine, case)
        emit({"answered": 1})
    measures = compare_outputs(golden, outputs, tolerance)
    require(measures)
    for case in golden.cases:
        task, prepared = asked[case.name]
        result = task.postprocess(prepared, task.compute(engine, prepared, Silence()))
        difference = compare_result(case, result, tolerance)
        if difference is not None:
            raise ParityError(f"wrong result: case {case.name!r}: {difference}", field=case.name)
    return measures


def _ask(case: Case, tasks: Tasks) -> tuple[Task, Prepared]:
    """The task that takes the case's request and the tensors it makes, which must be the framework's."""
    task = tasks.choose(case.request)
    if task.name != case.task:
        raise ParityError(
            f"wrong task: case {case.name!r} is answered by {task.name}, the framework answered {case.task}",
            field=case.name,
            expected=case.task,
            got=task.name,
        )
    prepared = task.preprocess(case.request)
    difference = compare_inputs(case, prepared.inputs)
    if difference is not None:
        wrong = "wrong tokenizer" if "input_ids" in case.inputs else "wrong preprocessing"
        raise ParityError(
            f"{wrong}: case {case.name!r}: {difference}",
            field=difference.where,
            expected=difference.expected,
            got=difference.got,
        )
    return task, prepared


def _run(engine: Engine, case: Case) -> Tensors:
    return engine.run(case.inputs, tuple(case.outputs))


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
