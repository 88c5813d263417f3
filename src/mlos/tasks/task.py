"""The protocol that every task keeps, and the way back to whoever waits for its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from mlos.engines import Engine
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.prepared import Limits, Prepared


class Stream(Protocol):
    """The way back to whoever waits for a request, while it is computed."""

    def emit(self, part: dict[str, Any]) -> None:
        """Send a part of the answer, in the words of JSON; nothing is sent to who did not ask for parts."""
        ...

    def check(self) -> None:
        """See whether anybody still waits.

        Raises:
            DeadlineError: if nobody does: the client has left, or its deadline has passed.
        """
        ...


class Silence:
    """The stream of a request for whose parts nobody asks, and which nobody gives up."""

    def emit(self, part: dict[str, Any]) -> None:
        """Let the part go."""

    def check(self) -> None:
        """Go on."""


class Task(Protocol):
    """One way of asking one model. It keeps nothing between requests; several threads may use it at once."""

    name: ClassVar[str]

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        """Read what the package in ``folder`` has for this task.

        Raises:
            RefusedError: if the package lacks something or asks for what this task cannot do.
        """
        ...

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether a request that names no task is meant for this one."""
        ...

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """The request as tensors.

        Raises:
            InvalidInputError: naming the field, what was expected and what came.
        """
        ...

    def compute(self, engine: Engine, prepared: Prepared, stream: Stream) -> Any:
        """What the engine makes of it, for ``postprocess``; parts of the answer go to ``stream`` meanwhile.

        Raises:
            DeadlineError: if nobody waits any more.
            MlosError: what the engine raises.
        """
        ...

    def postprocess(self, prepared: Prepared, computed: Any) -> Any:
        """The answer, in the words of JSON.

        Raises:
            WorkerError: if the model answered NaN or infinity, for which JSON has no word.
        """
        ...


class Writer(Protocol):
    """An answer under way: it takes the model's tokens one by one, and says when it has had enough."""

    def join(self, places: Any) -> int | None:
        """Take one of the engine's ``places``; None while there is none, or no room in it.

        Raises:
            MlosError: if the engine will not go on with what is to be written.
        """
        ...

    def take(self, token: int, stream: Stream) -> bool:
        """Take the next token, and send what it makes certain; whether the answer is finished with it."""
        ...

    def finish(self, stream: Stream) -> Any:
        """What ``postprocess`` takes, when there will be no more tokens; what was held back of it is sent."""
        ...


@runtime_checkable
class WritingTask(Task, Protocol):
    """A task whose answers are written token by token, and may be beside others.

    ``beside`` tells whether those are that ask for nothing particular.
    """

    beside: bool

    def writer(self, engine: Any, prepared: Prepared) -> Writer | None:
        """The answer to a request, to be written beside others; None where it is computed alone.

        Raises:
            MlosError: if it cannot be written.
        """
        ...


class SinglePass:
    """The computing of a task that runs its model once and is answered from the outputs it asked for."""

    def compute(self, engine: Engine, prepared: Prepared, stream: Stream) -> Tensors:
        """One run of the engine."""
        return engine.run(prepared.inputs, prepared.outputs)
