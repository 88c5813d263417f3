"""A package's tasks and an opened engine, held to its golden record: whoever serves or packages asks here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mlos.engines import Engine
from mlos.errors import ParityError
from mlos.model import Manifest, ParityMeasure, Tensors
from mlos.parity import (
    Case,
    GoldenRecord,
    Tolerance,
    compare_inputs,
    compare_outputs,
    compare_result,
    require,
    vacuity,
)
from mlos.tasks import Prepared, Silence, Task, Tasks, tasks_of


class Proof:
    """The cases of a golden record, each asked of the package's own task.

    Raises:
        ParityError: if the record proves nothing with this tolerance, or a task is not the one that the
            framework's was, or makes other tensors than it did.
    """

    def __init__(self, folder: Path, manifest: Manifest, tolerance: Tolerance) -> None:
        assert manifest.golden is not None, "a package without a golden record is not proven"
        self.golden = GoldenRecord.load(folder / manifest.golden)
        self._tolerance = tolerance
        reason = vacuity(self.golden, tolerance)
        if reason is not None:
            raise ParityError(
                f"vacuous: {reason}; this parity could not have failed",
                hint="the weights may be untrained, or the golden requests too much alike",
            )
        tasks = tasks_of(folder, manifest)
        self.asked = {case.name: _ask(case, tasks) for case in self.golden.cases}

    def hold(self, engine: Engine, answered: Callable[[], None] = lambda: None) -> tuple[ParityMeasure, ...]:
        """Hold an engine's outputs to the framework's, then the tasks' results; the measures all passed.

        ``answered`` is called after each case.

        Raises:
            ParityError: at the first thing that is wrong.
        """
        outputs: dict[str, Tensors] = {}
        for case in self.golden.cases:
            outputs[case.name] = engine.run(case.inputs, tuple(case.outputs))
            answered()
        measures = compare_outputs(self.golden, outputs, self._tolerance)
        require(measures)
        for case in self.golden.cases:
            task, prepared = self.asked[case.name]
            result = task.postprocess(prepared, task.compute(engine, prepared, Silence()))
            self.check(case, result)
        return measures

    def check(self, case: Case, result: object) -> None:
        """Raise :class:`ParityError` unless ``result`` is what the framework answered to the case."""
        difference = compare_result(case, result, self._tolerance)
        if difference is not None:
            raise ParityError(f"wrong result: case {case.name!r}: {difference}", field=case.name)


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
