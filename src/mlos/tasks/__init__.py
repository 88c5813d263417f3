"""Tasks: what a person has (a text, an image, tensors) to an engine's tensors, and its tensors to an answer.

Each is a class behind the small protocol :class:`Task`, found through the entry-point group ``mlos.tasks.v1``,
the built-in ones included. What a task needs to know of a model stands in ``manifest.preprocessing[task]``; the
module of each task says which keys it reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from pathlib import Path

from mlos.errors import InvalidInputError, NotFoundError, RefusedError
from mlos.model import InferenceRequest, Manifest
from mlos.tasks.generation import Generated, LanguageTask
from mlos.tasks.prepared import Limits, Prepared, subject
from mlos.tasks.task import Silence, SinglePass, Stream, Task, Writer, WritingTask

GROUP = "mlos.tasks.v1"
TENSORS = "tensors"
"""The task every model has: named tensors in, named tensors out."""

__all__ = [
    "GROUP",
    "TENSORS",
    "Generated",
    "LanguageTask",
    "Limits",
    "Prepared",
    "Silence",
    "SinglePass",
    "Stream",
    "Task",
    "Tasks",
    "Writer",
    "WritingTask",
    "tasks_of",
]


class Tasks:
    """The tasks of one model, in its manifest's order, tensors last."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._tasks = {task.name: task for task in tasks}

    @property
    def names(self) -> tuple[str, ...]:
        """What a request may name as its task."""
        return tuple(self._tasks)

    @property
    def beside(self) -> bool:
        """Whether any of them writes its answers beside others."""
        return any(isinstance(task, WritingTask) and task.beside for task in self._tasks.values())

    def choose(self, request: InferenceRequest) -> Task:
        """The task the request names; else tensors for ``inputs``; else the first that accepts it.

        Where none accepts it, it is the model's first task, whose ``preprocess`` says what is missing.

        Raises:
            NotFoundError: if the model has no task of that name.
            InvalidInputError: if not exactly one field holds what is asked about, or the model answers tensors
                alone.
        """
        kind = subject(request)
        if request.task is not None:
            if request.task not in self._tasks:
                raise NotFoundError(
                    f"the model has no task {request.task!r}",
                    field="task",
                    expected=", ".join(self._tasks),
                    got=repr(request.task),
                )
            return self._tasks[request.task]
        if kind == "inputs":
            return self._tasks[TENSORS]
        others = [task for name, task in self._tasks.items() if name != TENSORS]
        if not others:
            raise InvalidInputError(
                f"the model takes named tensors, not {kind}", field=kind, expected="inputs", got=kind
            )
        return next((task for task in others if task.accepts(request)), others[0])


def tasks_of(folder: Path, manifest: Manifest, limits: Limits | None = None) -> Tasks:
    """The tasks that ``manifest`` declares, and tensors, for the package in ``folder``.

    Raises:
        RefusedError: if a task is not known here, or the package lacks what a task needs.
    """
    known = {point.name: point for point in entry_points(group=GROUP)}
    names = (*(name for name in manifest.tasks if name != TENSORS), TENSORS)
    for name in names:
        if name not in known:
            raise RefusedError(
                f"{manifest.name} declares the task {name!r}, which this MLOS does not know",
                field="tasks",
                expected=", ".join(sorted(known)),
                got=repr(name),
                hint="upgrade MLOS: pip install --upgrade mlos",
            )
    classes: list[type[Task]] = [known[name].load() for name in names]
    return Tasks([task(folder, manifest, limits or Limits()) for task in classes])
