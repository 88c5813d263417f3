"""The channel over a Unix socket: a heap in the front, credits from the worker, sealed memfds for large bodies.

The worker's ``claim`` sends credits; the front spends one per request it sends, and those that are left when
it has sent what waits are void. So nothing lies in a socket buffer that the worker has no place for,
priorities and deadlines are decided at the last moment, and what is written never exceeds what is being read.
A claim that the worker does not wait for is the same claim: it stands, and is read when the worker looks in.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from mlos.accel import Job, Outcome, Ticket
from mlos.accel.wire import (
    Cancel,
    Claim,
    Closed,
    Complete,
    Emit,
    Given,
    Packet,
    ProtocolError,
    Submit,
    Wire,
)
from mlos.errors import DeadlineError, InvalidInputError, MlosError, NoRoomError

_MOST_CREDITS = 1024
_MOST_READ_AT_ONCE = 32
_MOST_PARTS = 1 << 16
"""Parts of one request that may wait to be taken: more than any model writes."""
_END = object()


class _Ticket:
    """One request. ``sent`` is None while it waits."""

    def __init__(self, number: int, body: Any, priority: int, deadline: float, submitted: float) -> None:
        self.id = number
        self.priority = priority
        self.body = body
        self.deadline = deadline
        self.submitted = submitted
        self.sent: float | None = None
        self.ended = False
        self.timer: asyncio.TimerHandle | None = None
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.emitted: asyncio.Queue[Any] = asyncio.Queue()

    async def parts(self) -> AsyncIterator[Any]:
        while (part := await self.emitted.get()) is not _END:
            yield part

    def end(self, result: Outcome | MlosError | None) -> None:
        """Settle the request, once; None means that it was cancelled.

        The outcome may be settled before: whoever stops waiting for a future cancels it.
        """
        self.ended = True
        if self.timer is not None:
            self.timer.cancel()
        self.emitted.put_nowait(_END)
        self.body = None
        if self.outcome.done():
            return
        if isinstance(result, MlosError):
            self.outcome.set_exception(result)
            self.outcome.exception()  # marks it as seen: a client that has left leaves nobody to look at it
        elif result is None:
            self.outcome.cancel()
        else:
            self.outcome.set_result(result)


class UserspaceFront:
    """The front's end. ``broken`` is called with the reason when a worker breaks the rules of the wire."""

    def __init__(self, broken: Callable[[str], None]) -> None:
        self._broken = broken
        self._loop = asyncio.get_running_loop()
        self._wire: Wire[Claim | Emit | Complete] = Wire(Claim | Emit | Complete)
        self._numbers = itertools.count()
        self._heap: list[tuple[int, float, int, _Ticket]] = []
        self._waiting = 0
        self._claimed: dict[int, _Ticket] = {}
        self._end: socket.socket | None = None
        self._credits = 0
        self._several = False
        """Whether the worker's claim is for more than one: it waits to be told that there are no more."""
        self._unsent: deque[tuple[Packet, _Ticket | None]] = deque()

    @property
    def waiting(self) -> int:
        """See :class:`mlos.accel.FrontChannel`."""
        return self._waiting

    @property
    def claimed(self) -> int:
        """See :class:`mlos.accel.FrontChannel`."""
        return len(self._claimed)

    def overdue(self) -> float:
        """See :class:`mlos.accel.FrontChannel`."""
        if not self._claimed:
            return 0.0
        return max(0.0, time.monotonic() - min(ticket.deadline for ticket in self._claimed.values()))

    def connect(self) -> int:
        """See :class:`mlos.accel.FrontChannel`."""
        assert self._end is None, "a channel has one worker at a time"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._end = ours
        self._loop.add_reader(ours.fileno(), self._readable)
        return theirs.detach()

    def submit(self, body: Any, *, deadline: float, priority: int = 0) -> _Ticket:
        """See :class:`mlos.accel.FrontChannel`."""
        now = time.monotonic()
        ticket = _Ticket(next(self._numbers), body, priority, deadline, now)
        if deadline <= now:
            ticket.end(_expired(ticket))
            return ticket
        # Not call_at: the event loop's own clock may be coarser than the monotonic one, and cached.
        ticket.timer = self._loop.call_later(deadline - now, self._expire, ticket)
        self._push(ticket)
        self._dispatch()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """See :class:`mlos.accel.FrontChannel`."""
        assert isinstance(ticket, _Ticket)
        self._drop(ticket, None)

    def disconnect(self, error: MlosError) -> None:
        """See :class:`mlos.accel.FrontChannel`."""
        if self._end is not None:
            self._read(self._end, last=True)
        if self._end is not None:
            self._hang_up(self._end)
        for ticket in self._claimed.values():
            ticket.end(error)
        self._claimed.clear()

    def close(self, error: MlosError) -> None:
        """See :class:`mlos.accel.FrontChannel`."""
        self.disconnect(error)
        for *_, ticket in self._heap:
            ticket.end(error)
        self._heap.clear()
        self._waiting = 0

    def _push(self, ticket: _Ticket) -> None:
        heapq.heappush(self._heap, (ticket.priority, ticket.deadline, ticket.id, ticket))
        self._waiting += 1

    def _expire(self, ticket: _Ticket) -> None:
        self._drop(ticket, _expired(ticket))

    def _drop(self, ticket: _Ticket, error: MlosError | None) -> None:
        if ticket.ended:
            return
        ticket.end(error)
        if ticket.id in self._claimed:
            self._send(self._wire.encode(Cancel(ticket.id)), None)
            return
        self._waiting -= 1
        if len(self._heap) > 64 and len(self._heap) > 2 * self._waiting:
            self._heap = [entry for entry in self._heap if not entry[3].ended]
            heapq.heapify(self._heap)

    def _dispatch(self) -> None:
        """Spend the worker's credits on what is first in the heap: as much of a claim as there is, at once."""
        given = False
        while self._credits and self._heap:
            *_, ticket = heapq.heappop(self._heap)
            if ticket.ended:
                continue
            self._waiting -= 1
            now = time.monotonic()
            if ticket.deadline <= now:
                ticket.end(_expired(ticket))
                continue
            try:
                packet = self._wire.encode(Submit(ticket.id, ticket.deadline, now, ticket.body))
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                ticket.end(InvalidInputError(f"the request cannot be handed to the model: {error}"))
                continue
            except OSError as error:
                ticket.end(NoRoomError(f"no memory to hand the request to the model: {error}"))
                continue
            ticket.sent = now
            self._credits -= 1
            given = True
            self._claimed[ticket.id] = ticket
            self._send(packet, ticket)
        if given:
            self._credits = 0
            if self._several:
                self._send(self._wire.encode(Given()), None)

    def _send(self, packet: Packet, ticket: _Ticket | None) -> None:
        """Send a packet, now or when there is room. ``ticket`` is the request it carries, if it does."""
        self._unsent.append((packet, ticket))
        if self._end is None:
            self._discard_unsent()
        elif len(self._unsent) == 1:
            self._write(self._end)
            if self._unsent:
                self._loop.add_writer(self._end.fileno(), self._writable)

    def _writable(self) -> None:
        assert self._end is not None
        self._write(self._end)
        if not self._unsent:
            self._loop.remove_writer(self._end.fileno())

    def _write(self, end: socket.socket) -> None:
        try:
            while self._unsent:
                self._unsent[0][0].send(end)
                self._unsent.popleft()
        except BlockingIOError:
            return
        except ConnectionError:
            # The worker is gone. What it answered before is still to be read, what it never got goes back.
            self._credits = 0
            self._discard_unsent()

    def _discard_unsent(self) -> None:
        while self._unsent:
            packet, ticket = self._unsent.popleft()
            packet.discard()
            if ticket is not None:
                del self._claimed[ticket.id]
                if not ticket.ended:
                    ticket.sent = None
                    self._push(ticket)

    def _readable(self) -> None:
        assert self._end is not None
        self._read(self._end, last=False)

    def _read(self, end: socket.socket, *, last: bool) -> None:
        """Take in what has come: a bounded number of messages, so that others get their turn.

        With ``last``, all that a dead worker left behind: its answers count, its claims are void.
        """
        for _ in itertools.count() if last else range(_MOST_READ_AT_ONCE):
            try:
                message = self._wire.receive(end)
                if not (last and isinstance(message, Claim)):
                    self._take(message)
            except BlockingIOError:
                return
            except Closed:
                self._hang_up(end)
                return
            except ProtocolError as error:
                self._hang_up(end)
                self._broken(str(error))
                return

    def _take(self, message: Claim | Emit | Complete) -> None:
        if isinstance(message, Claim):
            self._credits += message.count
            if message.count < 1 or self._credits > _MOST_CREDITS:
                raise ProtocolError(f"claimed {message.count} with {self._credits} credits")
            self._several = message.count > 1
            self._dispatch()
            return
        ticket = self._claimed.get(message.id)
        if ticket is None or ticket.sent is None:
            raise ProtocolError(f"spoke of request {message.id}, which it has not claimed")
        if isinstance(message, Emit):
            if not ticket.ended:
                if ticket.emitted.qsize() >= _MOST_PARTS:
                    raise ProtocolError(f"emitted {_MOST_PARTS} parts of request {message.id} that nobody took")
                ticket.emitted.put_nowait(message.body)
            return
        del self._claimed[message.id]
        if message.error is not None:
            ticket.end(MlosError.from_dict(message.error))
            return
        now = time.monotonic()
        ticket.end(Outcome(message.body, ticket.submitted, ticket.sent, message.finished, now))

    def _hang_up(self, end: socket.socket) -> None:
        self._loop.remove_reader(end.fileno())
        self._loop.remove_writer(end.fileno())
        end.close()
        self._end = None
        self._credits = 0
        self._discard_unsent()


class UserspaceWorker:
    """The worker's end, on the descriptor it was given."""

    def __init__(self, descriptor: int) -> None:
        self._end = socket.socket(fileno=descriptor)
        self._end.setblocking(True)
        self._wire: Wire[Submit | Cancel | Given] = Wire(Submit | Cancel | Given)
        self._claiming = 0
        """Requests of the claim that the front has not met yet."""
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
                    self._claiming = limit
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

    def complete(self, job: Job, outcome: Any | MlosError) -> None:
        """See :class:`mlos.accel.WorkerChannel`."""
        finished = time.monotonic()
        if isinstance(outcome, MlosError):
            frame = Complete(job.id, finished, None, outcome.as_dict())
        else:
            frame = Complete(job.id, finished, outcome, None)
        packet = self._wire.encode(frame)
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
            self._claiming = 0
            return
        if isinstance(message, Cancel):
            if message.id in self._open:
                self._cancelled.add(message.id)
            for job in [job for job in self._backlog if job.id == message.id]:  # at once, if it was not begun
                self._backlog.remove(job)
                self.complete(job, DeadlineError("cancelled or expired before it was started"))
            return
        if self._claiming == 1:  # of a claim of one nothing more is said
            self._claiming = 0
        self._open.add(message.id)
        self._backlog.append(Job(message.id, message.body, message.deadline, message.sent, time.monotonic()))


def _expired(ticket: _Ticket) -> DeadlineError:
    where = "waiting in the queue" if ticket.sent is None else "being computed"
    allowed = ticket.deadline - ticket.submitted
    return DeadlineError(
        f"the request's deadline of {allowed:.3g} s passed while it was {where}",
        hint="send it again later, ask for less at a time, or raise the server's --request-timeout",
    )
