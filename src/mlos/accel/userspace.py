"""The channel over Unix sockets: a heap in the front, credits from its workers, sealed memfds for large bodies.

A worker's ``claim`` sends credits; the front spends one per request it sends, and those that are left when
it has sent what waits are void. So nothing lies in a socket buffer that the worker has no place for,
priorities and deadlines are decided at the last moment, and what is written never exceeds what is being read.
A claim that the worker does not wait for is the same claim: it stands, and is read when the worker looks in.
A claim may travel with the answer before it: then a request that comes alone costs one message each way.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from mlos.accel import Job, Outcome, Ticket
from mlos.accel.end import End, Request
from mlos.accel.wire import Cancel, Claim, Closed, Complete, Emit, Given, Packet, ProtocolError, Submit, Wire
from mlos.errors import DeadlineError, InvalidInputError, MlosError, NoRoomError

_MOST_CREDITS = 1024
_MOST_PARTS = 1 << 16
"""Parts of one request that may wait to be taken: more than any model writes."""


class UserspaceFront:
    """The front's side. ``broken`` is told the place and the reason when a worker breaks the wire's rules."""

    def __init__(self, broken: Callable[[int, str], None]) -> None:
        self.batch_wait = 0.0
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._wire: Wire[Claim | Emit | Complete] = Wire(Claim | Emit | Complete)
        self._numbers = itertools.count()
        self._turns = itertools.count()
        self._heap: list[tuple[int, float, int, Request]] = []
        self._waiting = 0
        self._ends: dict[int, End] = {}
        self._again: asyncio.TimerHandle | None = None
        """When what is held for company is looked at again."""

    @property
    def waiting(self) -> int:
        """See :class:`mlos.accel.FrontChannel`."""
        return self._waiting

    @property
    def claimed(self) -> int:
        """See :class:`mlos.accel.FrontChannel`."""
        return sum(len(end.claimed) for end in self._ends.values())

    def overdue(self, place: int = 0) -> float:
        """See :class:`mlos.accel.FrontChannel`."""
        end = self._ends.get(place)
        if end is None or not end.claimed:
            return 0.0
        return max(0.0, time.monotonic() - min(request.deadline for request in end.claimed.values()))

    def connect(self, place: int = 0) -> int:
        """See :class:`mlos.accel.FrontChannel`."""
        assert place not in self._ends, "a place has one worker at a time"
        end = End(self._wire, self._take, self._take_back, partial(self._broken, place))
        self._ends[place] = end
        return end.open()

    def submit(self, body: Any, *, deadline: float, priority: int = 0) -> Request:
        """See :class:`mlos.accel.FrontChannel`."""
        now = time.monotonic()
        request = Request(next(self._numbers), body, priority, deadline, now)
        if deadline <= now:
            request.settle(_expired(request))
            return request
        # Not call_at: the event loop's own clock may be coarser than the monotonic one, and cached.
        request.timer = self._loop.call_later(deadline - now, self._expire, request)
        self._push(request)
        self._dispatch()
        return request

    def cancel(self, ticket: Ticket) -> None:
        """See :class:`mlos.accel.FrontChannel`."""
        assert isinstance(ticket, Request)
        self._drop(ticket, None)

    def disconnect(self, error: MlosError, place: int | None = None) -> None:
        """See :class:`mlos.accel.FrontChannel`."""
        for each in list(self._ends) if place is None else [place]:
            end = self._ends.get(each)
            if end is not None:
                end.leave(error)
                del self._ends[each]

    def close(self, error: MlosError) -> None:
        """See :class:`mlos.accel.FrontChannel`."""
        self.disconnect(error)
        for *_, request in self._heap:
            request.settle(error)
        self._heap.clear()
        self._waiting = 0

    def _push(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.priority, request.deadline, request.id, request))
        self._waiting += 1

    def _take_back(self, request: Request) -> None:
        """Queue again what a worker never got. Another may take it, in a moment: somebody is giving now."""
        self._push(request)
        self._loop.call_soon(self._dispatch)

    def _expire(self, request: Request) -> None:
        self._drop(request, _expired(request))

    def _drop(self, request: Request, error: MlosError | None) -> None:
        if request.ended:
            return
        request.settle(error)
        if request.end is not None:
            request.end.tell(Cancel(request.id))
            return
        self._waiting -= 1
        if len(self._heap) > 64 and len(self._heap) > 2 * self._waiting:
            self._heap = [entry for entry in self._heap if not entry[3].ended]
            heapq.heapify(self._heap)

    def _dispatch(self) -> None:
        """Meet the claims there are with what is first in the heap.

        The worker with the least to do goes first, and of those the one that has waited longest.
        """
        while self._heap and (ready := [end for end in self._ends.values() if end.credits]):
            ready = [end for end in ready if not self._held(end)]
            if not ready:
                return
            self._meet(min(ready, key=lambda end: (len(end.claimed), end.turn)))

    def _held(self, end: End) -> bool:
        """Whether a claim is not met yet, because more may come that it has a place for."""
        if not self.batch_wait or not end.several or self._waiting >= end.credits:
            return False
        now = time.monotonic()
        left = min((self._patience(each) for *_, each in self._heap if not each.ended), default=now) - now
        if left <= 0:
            return False
        if self._again is not None:
            self._again.cancel()
        self._again = self._loop.call_later(left, self._dispatch)
        return True

    def _patience(self, request: Request) -> float:
        """Until when a request may wait for others."""
        return request.submitted + min(self.batch_wait, (request.deadline - request.submitted) / 2)

    def _meet(self, end: End) -> None:
        """Spend a worker's credits: as much of a claim as there is, at once."""
        requests, given, told = self._next(end.credits), False, False
        for number, request in enumerate(requests, 1):
            now, last = time.monotonic(), number == len(requests)
            try:
                packet = self._wire.encode(Submit(request.id, request.deadline, now, request.body, last))
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                request.settle(InvalidInputError(f"the request cannot be handed to the model: {error}"))
                continue
            except OSError as error:
                request.settle(NoRoomError(f"no memory to hand the request to the model: {error}"))
                continue
            given, told = True, last
            end.give(packet, request, now)
        if given:
            end.credits = 0
            if not told:
                end.tell(Given())

    def _next(self, most: int) -> list[Request]:
        """Take from the heap what is first in it and may still be answered."""
        found: list[Request] = []
        while self._heap and len(found) < most:
            *_, request = heapq.heappop(self._heap)
            if request.ended:
                continue
            self._waiting -= 1
            if request.deadline <= time.monotonic():
                request.settle(_expired(request))
            else:
                found.append(request)
        return found

    def _take(self, end: End, message: Claim | Emit | Complete) -> None:
        if isinstance(message, Claim):
            self._credit(end, message.count)
            return
        request = end.claimed.get(message.id)
        if request is None or request.sent is None:
            raise ProtocolError(f"spoke of request {message.id}, which it has not claimed")
        if isinstance(message, Emit):
            if not request.ended:
                if request.emitted.qsize() >= _MOST_PARTS:
                    raise ProtocolError(f"emitted {_MOST_PARTS} parts of request {message.id} that nobody took")
                request.emitted.put_nowait(message.body)
            return
        del end.claimed[message.id]
        if message.error is not None:
            request.settle(MlosError.from_dict(message.error))
        else:
            now = time.monotonic()
            request.settle(Outcome(message.body, request.submitted, request.sent, message.finished, now))
        if message.claim:
            self._credit(end, message.claim)

    def _credit(self, end: End, count: int) -> None:
        end.credits += count
        if count < 1 or end.credits > _MOST_CREDITS:
            raise ProtocolError(f"claimed {count} with {end.credits} credits")
        end.several = count > 1
        end.turn = next(self._turns)
        self._dispatch()


class UserspaceWorker:
    """The worker's end, on the descriptor it was given."""

    def __init__(self, descriptor: int) -> None:
        self._end = socket.socket(fileno=descriptor)
        self._end.setblocking(True)
        self._wire: Wire[Submit | Cancel | Given] = Wire(Submit | Cancel | Given)
        self._claiming = False
        """Whether a claim stands that the front has not met yet."""
        self._backlog: deque[Job] = deque()
        self._cancelled: set[int] = set()
        self._open: set[int] = set()

    def claim(self, limit: int = 1, *, wait: bool = True) -> list[Job]:
        """See :class:`mlos.accel.WorkerChannel`."""
        jobs: list[Job] = []
        try:
            while True:
                while self._backlog and len(jobs) < limit:
                    job = self._backlog.popleft()
                    if self.cancelled(job):
                        self.complete(job, DeadlineError("cancelled or expired before it was started"))
                    else:
                        jobs.append(job)
                if jobs:
                    return jobs
                if not self._claiming:
                    self._wire.encode(Claim(limit)).send(self._end)
                    self._claiming = True
                while wait and self._claiming:
                    self._take(self._wire.receive(self._end))
                self._drain()
                if not (wait or self._backlog):
                    return []
        except (Closed, ConnectionError):
            return []

    def cancelled(self, job: Job) -> bool:
        """See :class:`mlos.accel.WorkerChannel`."""
        self._drain()
        return job.id in self._cancelled or job.deadline <= time.monotonic()

    def emit(self, job: Job, body: Any) -> None:
        """See :class:`mlos.accel.WorkerChannel`."""
        self._send(self._wire.encode(Emit(job.id, body)))

    def complete(self, job: Job, outcome: Any | MlosError, *, claim: int = 0) -> None:
        """See :class:`mlos.accel.WorkerChannel`."""
        finished = time.monotonic()
        if self._claiming or self._backlog:
            claim = 0
        if isinstance(outcome, MlosError):
            frame = Complete(job.id, finished, None, outcome.as_dict(), claim)
        else:
            frame = Complete(job.id, finished, outcome, None, claim)
        packet = self._wire.encode(frame)
        self._claiming = self._claiming or claim > 0
        self._open.discard(job.id)
        self._cancelled.discard(job.id)
        self._send(packet)

    def close(self) -> None:
        """See :class:`mlos.accel.WorkerChannel`."""
        self._end.close()

    def _send(self, packet: Packet) -> None:
        try:
            packet.send(self._end)
        except ConnectionError:
            packet.discard()  # nobody is left to be answered, and the next claim will say so

    def _drain(self) -> None:
        while True:
            try:
                self._take(self._wire.receive(self._end, wait=False))
            except (BlockingIOError, Closed):
                return

    def _take(self, message: Submit | Cancel | Given) -> None:
        if isinstance(message, Given):
            self._claiming = False
            return
        if isinstance(message, Cancel):
            if message.id in self._open:
                self._cancelled.add(message.id)
            for job in [job for job in self._backlog if job.id == message.id]:  # at once, if it was not begun
                self._backlog.remove(job)
                self.complete(job, DeadlineError("cancelled or expired before it was started"))
            return
        self._claiming = self._claiming and not message.last
        self._open.add(message.id)
        self._backlog.append(Job(message.id, message.body, message.deadline, message.sent, time.monotonic()))


def _expired(request: Request) -> DeadlineError:
    where = "waiting in the queue" if request.sent is None else "being computed"
    allowed = request.deadline - request.submitted
    return DeadlineError(
        f"the request's deadline of {allowed:.3g} s passed while it was {where}",
        hint="send it again later, ask for less at a time, or raise the server's --request-timeout",
    )
