"""The generations that a worker has under way: each a job, its writer, and its place among the sequences.

They share the model's steps. Between two steps a new one joins, and one that is finished, that failed, or that
nobody waits for any more leaves its place. One that does not fit yet, because the model's cache is promised to
others, waits here, in its turn. What goes wrong with one costs that one alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mlos.accel import Job, WorkerChannel
from mlos.core.jobs import JobStream, gone, guarded
from mlos.engines import Places
from mlos.errors import DeadlineError, MlosError
from mlos.tasks import Writer


@dataclass(frozen=True)
class Written:
    """A finished generation, as its task takes it; from when to when it had a place, on the monotonic clock.

    ``steps`` tells how many of its tokens came from steps of how many sequences.
    """

    computed: Any
    began: float
    finished: float
    steps: dict[int, int]


@dataclass(eq=False)
class _Generation:
    job: Job
    writer: Writer
    stream: JobStream
    place: int | None = None
    began: float = 0.0
    steps: Counter[int] = field(default_factory=Counter)


class Generations:
    """Those of one worker, in the model's places for them."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._all: list[_Generation] = []

    @property
    def room(self) -> int:
        """How many may be added; none while one waits for room in the cache."""
        return 0 if any(each.place is None for each in self._all) else self._places.free

    def __len__(self) -> int:
        return len(self._all)

    def add(self, job: Job, writer: Writer, stream: JobStream) -> None:
        """Take one in; it takes its place at the next step."""
        self._all.append(_Generation(job, writer, stream))

    def step(self, channel: WorkerChannel) -> Iterator[tuple[Job, Written | MlosError]]:
        """Compute a token of each, as far as its prompt is read; those that have ended with it, and how."""
        for each in list(self._all):
            if channel.cancelled(each.job):
                yield self._end(each), gone()
        yield from self._admit()
        placed = {each.place: each for each in self._all if each.place is not None}

        def check() -> None:
            if all(channel.cancelled(each.job) for each in placed.values()):
                raise gone()

        if not placed:
            return
        tokens = guarded(partial(self._places.step, check))
        if isinstance(tokens, DeadlineError):  # nobody waits for any of them: the next step sees to that
            return
        if isinstance(tokens, MlosError):
            for each in placed.values():
                yield self._end(each), tokens.again()
            return
        for place, token in tokens.items():
            each = placed[place]
            if isinstance(token, MlosError):
                yield self._end(each), token
                continue
            each.steps[len(placed)] += 1
            outcome = guarded(partial(self._taken, each, token))
            if outcome is not None:
                yield self._end(each), outcome

    def _admit(self) -> Iterator[tuple[Job, MlosError]]:
        """Give places to those that have none, in turn, as far as there is room."""
        for each in [each for each in self._all if each.place is None]:
            place = guarded(partial(each.writer.join, self._places))
            if isinstance(place, MlosError):
                yield self._end(each), place
            elif place is None:
                return
            else:
                each.place, each.began = place, time.monotonic()

    def _taken(self, each: _Generation, token: int) -> Written | None:
        if not each.writer.take(token, each.stream):
            return None
        finished = time.monotonic()
        return Written(each.writer.finish(each.stream), each.began, finished, dict(each.steps))

    def _end(self, each: _Generation) -> Job:
        self._all.remove(each)
        if each.place is not None:
            self._places.leave(each.place)
        return each.job
