"""The front's end of one worker: what the worker has claimed, what it is still to be sent, what it says."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec

from mlos.accel import Outcome
from mlos.accel.wire import Cancel, Claim, Closed, Complete, Emit, Given, Packet, ProtocolError, Wire
from mlos.errors import MlosError

_MOST_READ_AT_ONCE = 32
_LAST = object()


class Request:
    """A ticket. ``sent`` and ``end`` are None while it waits; then they are when it was sent, and where."""

    def __init__(self, number: int, body: Any, priority: int, deadline: float, submitted: float) -> None:
        self.id = number
        self.priority = priority
        self.body = body
        self.deadline = deadline
        self.submitted = submitted
        self.sent: float | None = None
        self.end: End | None = None
        self.ended = False
        self.timer: asyncio.TimerHandle | None = None
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.emitted: asyncio.Queue[Any] = asyncio.Queue()

    async def parts(self) -> AsyncIterator[Any]:
        """See :class:`mlos.accel.Ticket`."""
        while (part := await self.emitted.get()) is not _LAST:
            yield part

    def settle(self, result: Outcome | MlosError | None) -> None:
        """End the request, once; None means that it was cancelled.

        The outcome may be settled before: whoever stops waiting for a future cancels it.
        """
        self.ended = True
        if self.timer is not None:
            self.timer.cancel()
        self.emitted.put_nowait(_LAST)
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


class End:
    """A worker's connection.

    ``heard`` takes each message that comes, ``returned`` each request that the worker never got because it is
    gone, and ``broken`` the reason when it breaks the rules of the wire.
    """

    def __init__(
        self,
        wire: Wire[Claim | Emit | Complete],
        heard: Callable[[End, Claim | Emit | Complete], None],
        returned: Callable[[Request], None],
        broken: Callable[[str], None],
    ) -> None:
        self.claimed: dict[int, Request] = {}
        self.credits = 0
        self.several = False
        """Whether its claim is for more than one."""
        self.turn = 0
        """Which of all claims its last one was."""
        self._wire, self._heard, self._returned, self._broken = wire, heard, returned, broken
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = None
        self._unsent: deque[tuple[Packet, Request | None]] = deque()

    def open(self) -> int:
        """Connect; the descriptor returned is the worker's."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._socket = ours
        self._loop.add_reader(ours.fileno(), self._readable)
        return theirs.detach()

    def give(self, packet: Packet, request: Request, now: float) -> None:
        """Hand a request to the worker, for one of its credits."""
        request.sent, request.end = now, self
        self.credits -= 1
        self.claimed[request.id] = request
        self._send(packet, request)

    def tell(self, frame: Given | Cancel) -> None:
        """Say something that is no request."""
        self._send(self._wire.encode(frame), None)

    def leave(self, error: MlosError) -> None:
        """Take leave of a worker: what it has answered counts, what else it claimed fails with ``error``."""
        if self._socket is not None:
            self._read(self._socket, last=True)
        self._hang_up()
        for request in self.claimed.values():
            request.settle(error)
        self.claimed.clear()

    def _send(self, packet: Packet, request: Request | None) -> None:
        """Send a packet, now or when there is room. ``request`` is what it carries, if it carries one."""
        self._unsent.append((packet, request))
        if self._socket is None:
            self._discard_unsent()
        elif len(self._unsent) == 1:
            self._write(self._socket)
            if self._unsent:
                self._loop.add_writer(self._socket.fileno(), self._writable)

    def _writable(self) -> None:
        assert self._socket is not None
        self._write(self._socket)
        if not self._unsent:
            self._loop.remove_writer(self._socket.fileno())

    def _write(self, end: socket.socket) -> None:
        try:
            while self._unsent:
                self._unsent[0][0].send(end)
                self._unsent.popleft()
        except BlockingIOError:
            return
        except ConnectionError:
            # The worker is gone. What it answered before is still to be read, what it never got goes back.
            self.credits = 0
            self._discard_unsent()

    def _discard_unsent(self) -> None:
        while self._unsent:
            packet, request = self._unsent.popleft()
            packet.discard()
            if request is not None:
                del self.claimed[request.id]
                if not request.ended:
                    request.sent = request.end = None
                    self._returned(request)

    def _readable(self) -> None:
        assert self._socket is not None
        self._read(self._socket, last=False)

    def _read(self, end: socket.socket, *, last: bool) -> None:
        """Take in what has come: a bounded number of messages, so that others get their turn.

        With ``last``, all that a dead worker left behind: its answers count, its claims are void.
        """
        for _ in itertools.count() if last else range(_MOST_READ_AT_ONCE):
            try:
                message = self._wire.receive(end)
                if last and isinstance(message, Complete):
                    message = msgspec.structs.replace(message, claim=0)
                if not (last and isinstance(message, Claim)):
                    self._heard(self, message)
            except BlockingIOError:
                return
            except Closed:
                self._hang_up()
                return
            except ProtocolError as error:
                self._hang_up()
                self._broken(str(error))
                return

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None
        self.credits = 0
        self._discard_unsent()
