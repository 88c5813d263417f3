"""A loaded model answers what its worker has claimed: one request alone, or several computed together.

Together they are preprocessed and postprocessed one by one and computed as one, in groups of like lengths. Who
does not wait any more is left out of a group. A group that the model refuses is computed one by one, so that
only the request that is wrong fails.

What is written token by token goes on step by step, beside what else is (:mod:`mlos.core.generations`).
Other requests of such a model wait until nothing is written: a run of the engine, which nobody can interrupt,
must hold up no stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from mlos.accel import Job, WorkerChannel
from mlos.core import tensors
from mlos.core.generations import Generations, Written
from mlos.core.jobs import JobStream, gone, guarded
from mlos.core.watch import Watch
from mlos.core.worker_protocol import Answer, Ask
from mlos.engines import Engine, Shared
from mlos.errors import DeadlineError, MlosError
from mlos.model import InferenceRequest, Manifest
from mlos.tasks import Prepared, SinglePass, Task, Tasks, Writer, WritingTask
from mlos.tasks.batching import Member, apart, batch_axis, grouped, together


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
    steps: dict[int, int] = field(default_factory=dict)


class Model:
    """A loaded model: its tasks and its engine, and the labels of its classes by how many there are.

    Up to ``most`` requests are computed together, texts of up to ``longest`` tokens; one alone where the
    artifact does not say along which axis they could be. Up to ``sequences`` generations are under way at a
    time, where the engine can.
    """

    def __init__(
        self,
        tasks: Tasks,
        engine: Engine,
        manifest: Manifest,
        most: int = 1,
        longest: int | None = None,
        sequences: int = 1,
    ) -> None:
        self._tasks, self._engine, self._artifact = tasks, engine, manifest.artifact
        self._watch = Watch(engine)
        self._labels, self._longest = labels_of(manifest), longest
        self.most = most if batch_axis(manifest.artifact) is not None else 1
        """How many requests are computed together."""
        places = engine.together(sequences) if isinstance(engine, Shared) and tasks.beside else None
        self._generations = Generations(places) if places is not None else None
        self._writing: dict[int, _Begun] = {}
        """Whose generation is under way, by the number of the job."""
        self._behind: list[_Begun] = []
        """Those that wait until nothing is written."""
        self._alone = False
        """Whether nothing of what was claimed last is written."""

    @property
    def room(self) -> int:
        """How many requests to claim at once."""
        if self._generations is None:
            return self.most
        if self._behind:
            return 0
        # What is not written together is better claimed when its turn comes, by whichever worker is free.
        return 1 if self._alone and not self._writing else self._generations.room

    @property
    def busy(self) -> bool:
        """Whether requests are under way that :meth:`step` goes on with."""
        return bool(self._writing or self._behind)

    def answers(self, jobs: Sequence[Job], channel: WorkerChannel) -> Iterator[tuple[Job, Answer | MlosError]]:
        """The outcome of each of ``jobs``, as soon as it is known; of some, :meth:`step` will tell."""
        begun: dict[int, _Begun] = {}
        for number, job in enumerate(jobs):
            outcome = guarded(partial(self._begin, job))
            if isinstance(outcome, MlosError):
                yield job, outcome
                continue
            writer = guarded(partial(self._writer, outcome))
            if isinstance(writer, MlosError):
                yield job, writer
            elif writer is not None:
                self._write(outcome, writer, channel)
            else:
                begun[number] = outcome
        if jobs:
            self._alone = len(begun) == len(jobs)
        if self._writing:
            self._behind += begun.values()
        else:
            yield from self._answered(begun, channel)

    def step(self, channel: WorkerChannel) -> Iterator[tuple[Job, Answer | MlosError]]:
        """Go on with what is under way; the outcome of each request that has ended with it."""
        for waiting in [each for each in self._behind if channel.cancelled(each.job)]:
            self._behind.remove(waiting)
            yield waiting.job, gone()
        for job, outcome in self._generations.step(channel) if self._generations is not None else ():
            begun = self._writing.pop(job.id)
            if isinstance(outcome, Written):
                begun.computing, begun.finished = outcome.began, outcome.finished
                begun.computed, begun.steps = outcome.computed, outcome.steps
                yield job, guarded(partial(self._finish, begun, channel))
            else:
                yield job, outcome
        if self._behind and not self._writing:
            behind, self._behind = dict(enumerate(self._behind)), []
            yield from self._answered(behind, channel)

    def _writer(self, begun: _Begun) -> Writer | None:
        """The answer, if it is to be written beside others."""
        if self._generations is None or not isinstance(begun.task, WritingTask):
            return None
        return begun.task.writer(self._engine, begun.prepared)

    def _write(self, begun: _Begun, writer: Writer, channel: WorkerChannel) -> None:
        """Let a generation join those that are under way."""
        assert self._generations is not None
        stream = JobStream(channel, begun.job, wanted=begun.request.stream)
        self._generations.add(begun.job, writer, stream)
        self._writing[begun.job.id] = begun

    def _answered(
        self, begun: dict[int, _Begun], channel: WorkerChannel
    ) -> Iterator[tuple[Job, Answer | MlosError]]:
        """Compute what is not written, and the outcome of each.

        Who is given up while another is computed is told so then, and not among the outcomes.
        """
        left = {each.job.id: each for each in begun.values()}
        for claimed in self._groups(begun):
            group = [each for each in claimed if left.pop(each.job.id, None) is not None]
            waiting = [each for each in group if len(begun) == 1 or not channel.cancelled(each.job)]
            for each in group:
                if each not in waiting:
                    yield each.job, gone()
            ended = guarded(partial(self._compute, waiting, channel)) if len(waiting) > 1 else None
            if isinstance(ended, DeadlineError):
                yield from ((each.job, ended) for each in waiting)
                continue
            for each in waiting:
                yield each.job, guarded(partial(self._finish, each, channel, left))

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

    def _compute(self, group: Sequence[_Begun], channel: WorkerChannel) -> None:
        """Compute a group; where the model refuses it as a whole, each is left to be computed alone.

        Raises:
            DeadlineError: if nobody waits for any of them any more.
        """
        members = [Member(number, each.prepared) for number, each in enumerate(group)]
        computing = time.monotonic()
        with self._watch.over(lambda: all(channel.cancelled(each.job) for each in group)):
            answers = self._engine.run(together(members), group[0].prepared.outputs)
        finished = time.monotonic()
        for each, own in zip(group, apart(members, answers, self._artifact), strict=True):
            each.computing, each.finished, each.computed, each.batch = computing, finished, own, len(group)

    def _finish(self, begun: _Begun, channel: WorkerChannel, left: dict[int, _Begun] | None = None) -> Answer:
        """Compute a request that has not been yet, and postprocess it; ``left`` wait for that."""
        job, task, prepared = begun.job, begun.task, begun.prepared
        if begun.computed is None:
            begun.computing = time.monotonic()
            stream = _HeadOfLine(channel, job, left or {}, wanted=begun.request.stream)
            # What computes in one run says nothing meanwhile: so another thread may look at the channel.
            silent = getattr(type(task), "compute", None) is SinglePass.compute
            with self._watch.over(lambda: channel.cancelled(job)) if silent else nullcontext():
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
        batch = begun.batch
        if begun.steps:  # of a generation: how many there were at a step on average
            written = sum(begun.steps.values())
            batch = round(sum(many * steps for many, steps in begun.steps.items()) / written)
        return Answer(task.name, result, timings, tokens, named, batch, ended, begun.steps)


class _HeadOfLine(JobStream):
    """The way back of a request that others wait behind, by the number of their jobs.

    A worker that says nothing of who is past its deadline is taken for hung.
    """

    def __init__(self, channel: WorkerChannel, job: Job, left: dict[int, _Begun], *, wanted: bool) -> None:
        super().__init__(channel, job, wanted=wanted)
        self._left = left

    def check(self) -> None:
        """See :class:`mlos.tasks.Stream`."""
        super().check()
        for number in [number for number, each in self._left.items() if self._channel.cancelled(each.job)]:
            self._channel.complete(self._left.pop(number).job, gone())


def labels_of(manifest: Manifest) -> dict[int, list[str]]:
    """The labels that a package names for any of its tasks, by how many there are."""
    named = [options.get("labels") for options in manifest.preprocessing.values() if isinstance(options, dict)]
    return {len(labels): labels for labels in named if isinstance(labels, list)}
