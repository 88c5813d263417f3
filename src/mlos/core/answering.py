"""A loaded model answers what its worker has claimed: one request alone, or several computed together.

Together they are preprocessed and postprocessed one by one and computed as one, in groups of like lengths. Who
does not wait any more is left out of a group. A group that the model refuses is computed one by one, so that
only the request that is wrong fails.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import msgspec

from mlos.accel import Job, WorkerChannel
from mlos.core import tensors
from mlos.core.worker_protocol import Answer, Ask
from mlos.engines import Engine
from mlos.errors import DeadlineError, MlosError, NoRoomError, WorkerError
from mlos.model import InferenceRequest, Manifest
from mlos.tasks import Prepared, SinglePass, Task, Tasks
from mlos.tasks.batching import Member, apart, batch_axis, grouped, together

T = TypeVar("T")


@dataclass
class _Begun:
    """A request that is preprocessed; ``computed`` is what the engine made of it, once it has been together."""

    job: Job
    ask: Ask
    request: InferenceRequest
    task: Task
    prepared: Prepared
    began: float
    prepared_at: float
    computing: float = 0.0
    computed: Any = field(default=None)
    finished: float = 0.0
    batch: int = 1


class Model:
    """A loaded model: its tasks and its engine, and the labels of its classes by how many there are.

    Up to ``most`` requests are computed together, texts of up to ``longest`` tokens; one alone where the
    artifact does not say along which axis they could be.
    """

    def __init__(
        self, tasks: Tasks, engine: Engine, manifest: Manifest, most: int = 1, longest: int | None = None
    ) -> None:
        self._tasks, self._engine, self._artifact = tasks, engine, manifest.artifact
        self._labels, self._longest = labels_of(manifest), longest
        self.most = most if batch_axis(manifest.artifact) is not None else 1
        """How many requests to claim at once."""

    def answers(self, jobs: Sequence[Job], channel: WorkerChannel) -> Iterator[tuple[Job, Answer | MlosError]]:
        """The outcome of each of ``jobs``, as soon as it is known."""
        begun: dict[int, _Begun] = {}
        for number, job in enumerate(jobs):
            outcome = _guarded(partial(self._begin, job))
            if isinstance(outcome, MlosError):
                yield job, outcome
            else:
                begun[number] = outcome
        for group in self._groups(begun):
            waiting = [each for each in group if len(jobs) == 1 or not channel.cancelled(each.job)]
            for each in group:
                if each not in waiting:
                    yield each.job, DeadlineError("nobody waits for this request any more")
            if len(waiting) > 1:
                _guarded(partial(self._compute, waiting))
            for each in waiting:
                yield each.job, _guarded(partial(self._finish, each, channel))

    def _groups(self, begun: dict[int, _Begun]) -> list[list[_Begun]]:
        """What is computed together, in the order in which it was claimed."""
        members = [
            Member(number, each.prepared)
            for number, each in begun.items()
            if isinstance(each.task, SinglePass) and not each.request.stream
        ]
        numbers = [[member.number for member in group] for group in grouped(members, self.most, self._longest)]
        alone = set(begun) - {number for group in numbers for number in group}
        return [[begun[number] for number in group] for group in sorted([*numbers, *([n] for n in alone)])]

    def _begin(self, job: Job) -> _Begun:
        began = time.monotonic()
        ask = msgspec.convert(job.body, Ask)
        request = tensors.request_of(ask)
        task = self._tasks.choose(request)
        return _Begun(job, ask, request, task, task.preprocess(request), began, time.monotonic())

    def _compute(self, group: Sequence[_Begun]) -> None:
        """Compute a group; where the model refuses it as a whole, each is left to be computed alone."""
        members = [Member(number, each.prepared) for number, each in enumerate(group)]
        computing = time.monotonic()
        answers = self._engine.run(together(members), group[0].prepared.outputs)
        finished = time.monotonic()
        for each, own in zip(group, apart(members, answers, self._artifact), strict=True):
            each.computing, each.finished, each.computed, each.batch = computing, finished, own, len(group)

    def _finish(self, begun: _Begun, channel: WorkerChannel) -> Answer:
        """Compute a request that has not been yet, and postprocess it."""
        job, task, prepared = begun.job, begun.task, begun.prepared
        if begun.computed is None:
            begun.computing = time.monotonic()
            stream = _JobStream(channel, job, wanted=begun.request.stream)
            begun.computed = task.compute(self._engine, prepared, stream)
            begun.finished = time.monotonic()
        postprocessing = time.monotonic()
        result, named = b"null", None
        if begun.ask.tensors is None:
            result = msgspec.json.encode(task.postprocess(prepared, begun.computed))
        else:
            named = tensors.answered(begun.ask, prepared.outputs, begun.computed, self._labels)
        seconds = {
            "copy_in": job.received - job.sent,
            "preprocess": begun.prepared_at - begun.began,
            # For the others that were claimed with it, and those of its group that are answered first.
            "wait": begun.began - job.received + begun.computing - begun.prepared_at,
            "compute": begun.finished - begun.computing,
            "postprocess": time.monotonic() - postprocessing,
        }
        seconds["wait"] += postprocessing - begun.finished
        timings = {stage: 1e3 * spent for stage, spent in seconds.items()}
        tokens = getattr(begun.computed, "tokens", dict(prepared.tokens))
        ended = getattr(begun.computed, "finish_reason", None)
        ended = ended if isinstance(ended, str) else None
        return Answer(task.name, result, timings, tokens, named, begun.batch, ended)


def labels_of(manifest: Manifest) -> dict[int, list[str]]:
    """The labels that a package names for any of its tasks, by how many there are."""
    named = [options.get("labels") for options in manifest.preprocessing.values() if isinstance(options, dict)]
    return {len(labels): labels for labels in named if isinstance(labels, list)}


class _JobStream:
    """A claimed request's way back through the channel."""

    def __init__(self, channel: WorkerChannel, job: Job, *, wanted: bool) -> None:
        self._channel, self._job, self._wanted = channel, job, wanted

    def emit(self, part: dict[str, Any]) -> None:
        if self._wanted:
            self._channel.emit(self._job, part)

    def check(self) -> None:
        if self._channel.cancelled(self._job):
            raise DeadlineError("nobody waits for this request any more")


def _guarded(work: Callable[[], T]) -> T | MlosError:
    """What ``work`` gives, or the error that it ended with: no request may end the worker."""
    try:
        return work()
    except MlosError as error:
        return error
    except MemoryError:
        return NoRoomError(
            "the request needs more memory than the model's worker has", hint="send less at a time"
        )
    except Exception as error:  # a bug must cost one request, not the worker
        traceback.print_tb(error.__traceback__)  # its place alone: its message may quote the request
        return WorkerError(f"the model's worker failed: {type(error).__name__}")
