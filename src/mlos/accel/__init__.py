"""The hand-over of requests between the front and one model's worker processes.

A channel knows five verbs. The front *submits* a request and may *cancel* it; a worker *claims* up to n
requests, *emits* partial results and *completes*. Waiting requests stand in the front's heap (priority class,
then earliest deadline, then arrival) until a worker claims them, so a worker that dies loses what it had
claimed and nothing else. Several workers may share the heap, each at a *place* of its own: a small number.
Deadlines are on ``CLOCK_MONOTONIC``, which all processes of one machine share; expired work is never started.

What a channel does not know: models, tasks, HTTP. A body is anything made of numbers, strings, bytes, lists,
dictionaries and numpy arrays. There is one backend, :mod:`mlos.accel.userspace`; a second one has only to keep
these protocols and pass the same tests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlos.errors import MlosError


@dataclass(frozen=True)
class Outcome:
    """A completed request's answer and its way. Times are seconds on the monotonic clock.

    ``submitted`` into the queue, ``sent`` to the worker, ``finished`` there, ``received`` and decoded here.
    """

    body: Any
    submitted: float
    sent: float
    finished: float
    received: float


class Ticket(Protocol):
    """A submitted request in the hands of whoever submitted it."""

    @property
    def outcome(self) -> asyncio.Future[Outcome]:
        """Resolves to the outcome, or to the :class:`MlosError` that ended the request."""
        ...

    def parts(self) -> AsyncIterator[Any]:
        """The bodies the worker emitted, in order, as they arrive; ends when the request does."""
        ...


class FrontChannel(Protocol):
    """The front's end. All methods are called from the event loop's thread and none of them blocks."""

    batch_wait: float
    """Seconds that a request may wait for others, where a claim is for more than wait; 0 unless it is set.

    A claim that is held for company is met once as many wait as it is for, or the first that came has waited so
    long, or for half of the time that its deadline leaves it.
    """

    @property
    def waiting(self) -> int:
        """Requests submitted and not yet claimed."""
        ...

    @property
    def claimed(self) -> int:
        """Requests claimed and not yet completed, cancelled ones included: a worker is still on them."""
        ...

    def connect(self, place: int = 0) -> int:
        """Open a connection for a new worker at a free place; the descriptor returned is the worker's end.

        Hand it down to the worker process, then close it here. The place is free again once the worker has
        been taken leave of.
        """
        ...

    def submit(self, body: Any, *, deadline: float, priority: int = 0) -> Ticket:
        """Queue a request; lower ``priority`` goes first. It fails with a ``DeadlineError`` at ``deadline``."""
        ...

    def cancel(self, ticket: Ticket) -> None:
        """Drop a request: never started if it still waits, else the worker is told; its result is ignored."""
        ...

    def overdue(self, place: int = 0) -> float:
        """Seconds by which a worker has overrun the earliest deadline among its claims; 0 if it has not."""
        ...

    def disconnect(self, error: MlosError, place: int | None = None) -> None:
        """Take leave of a dead worker, or of all: its claims fail with ``error``, what waits goes on so."""
        ...

    def close(self, error: MlosError) -> None:
        """End it: disconnect, and fail what waits with ``error`` too."""
        ...


@dataclass(frozen=True, eq=False)
class Job:
    """A claimed request in the hands of the worker. Times are as in :class:`Outcome`."""

    id: int
    body: Any
    deadline: float
    sent: float
    received: float = field(default=0.0)


class WorkerChannel(Protocol):
    """The worker's end, used by one thread. What is sent to a front that has gone is lost; ``claim`` tells."""

    def claim(self, limit: int = 1, *, wait: bool = True) -> list[Job]:
        """Wait for work: one to ``limit`` requests, none of them cancelled or expired.

        They are those that wait at that moment, first ones first; it is not waited for more of them, unless
        the front was told to.
        An empty list means that the front has closed the channel.

        Without ``wait`` it does not block: it gives what has come, which may be nothing, and a claim of
        ``limit`` stands until it is met. So a worker that computes looks in now and then, and what comes
        meanwhile is there when it looks next. What a standing claim was met with counts as claimed; the next
        call takes it, whether that one waits or not.
        """
        ...

    def cancelled(self, job: Job) -> bool:
        """Whether nobody waits for this job any more: it was cancelled or its deadline has passed."""
        ...

    def emit(self, job: Job, body: Any) -> None:
        """Send a partial result."""
        ...

    def complete(self, job: Job, outcome: Any | MlosError, *, claim: int = 0) -> None:
        """Answer a job, with a body or with an error; it is over.

        With ``claim``, the :meth:`claim` of so many that comes next is made with the same message, unless one
        stands already.

        Raises:
            TypeError: if the body holds what cannot cross; the job is still open.
        """
        ...

    def close(self) -> None:
        """Hang up."""
        ...


__all__ = ["FrontChannel", "Job", "Outcome", "Ticket", "WorkerChannel"]
