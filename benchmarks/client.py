"""The one client of every side: raw HTTP/1.1 over connections kept alive, each asking again when answered.

It knows nothing of models: requests are bytes made before, answers are bytes looked at after. Every
answer's status is read as it comes; of the bodies, the first of each request, warming up and
timed, and one in every hundred is kept to be checked.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import httptools
import uvloop

from mlos.errors import UnavailableError
from mlos.host.environment import steal_seconds
from mlos.validation import stats

MOST_STEAL = 0.01
"""Share of the processors' time; where the hypervisor took more, the window is rejected."""
_KEPT = 100
_WINDOWS = 10
_ANSWER_SECONDS = 120.0


_Unanswered: TypeAlias = tuple[int, bytes, float]
"""A request's number, the request, and when it was asked."""


@dataclass
class Timed:
    """What was seen of one server: seconds from request to answer, and how many answers a second."""

    latencies: list[float]
    seconds: float
    steady: bool
    """Whether three windows agreed before the clock started."""
    steal_share: float
    answers: list[tuple[int, bytes, str | None]] = field(default_factory=list)
    """Kept bodies: the request's number, the body, and the length of its JSON where a header says one."""

    @property
    def median(self) -> float:
        """Seconds."""
        return stats.quantile(self.latencies, 50)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds


def http_request(path: str, content_type: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A POST as it goes over the wire."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {content_type}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("ascii") + body


def drive(
    port: int, requests: Sequence[bytes], order: Sequence[int], clients: int, seconds: float, least: int
) -> Timed:
    """Warm up until three windows of ``least`` answers agree, then ask for ``seconds``, in ``order`` and again.

    Raises:
        UnavailableError: if the server refuses, cuts a connection, is silent, or answers with a status other
            than 200.
    """
    return uvloop.run(_drive(port, requests, order, clients, seconds, least))


def ask(port: int, request: bytes) -> tuple[bytes, str | None]:
    """One request; its body, and the length of its JSON where a header says one.

    Raises:
        UnavailableError: as :func:`drive`.
    """

    async def once() -> tuple[bytes, str | None]:
        load = _Load([request], [0], 1)
        await load.connect(port)
        await load.until(lambda: bool(load.done))
        load.close()
        _, body, length = load.kept[0]
        return body, length

    return uvloop.run(once())


async def _drive(
    port: int, requests: Sequence[bytes], order: Sequence[int], clients: int, seconds: float, least: int
) -> Timed:
    load = _Load(requests, order, clients)
    for _ in range(clients):
        await load.connect(port)
    windows: list[stats.WindowSummary] = []
    while len(windows) < _WINDOWS and not stats.steady(windows):
        first, began = len(load.done), time.perf_counter()
        end, wanted = began + seconds / 6, first + least
        await load.until(_reached(load, end, wanted))
        found = [taken for _, taken in load.done[first:]]
        rate = len(found) / (time.perf_counter() - began)
        windows.append(stats.WindowSummary(rate, 1e3 * stats.quantile(found, 90)))
    load.seen.clear()  # what is timed is checked too
    first, began, stolen = len(load.done), time.perf_counter(), steal_seconds()
    await load.until(_reached(load, began + seconds, first + least))
    taken = time.perf_counter() - began
    latencies = [each for _, each in load.done[first:]]
    load.close()
    share = (steal_seconds() - stolen) / (taken * (os.cpu_count() or 1))
    return Timed(latencies, taken, stats.steady(windows), share, load.kept)


def _reached(load: _Load, end: float, count: int) -> Callable[[], bool]:
    """Whether it is so late, and so much is answered."""
    return lambda: time.perf_counter() >= end and len(load.done) >= count


class _Load:
    """What the connections share: what to ask next, what was answered, what went wrong."""

    def __init__(self, requests: Sequence[bytes], order: Sequence[int], clients: int) -> None:
        self._requests, self._order = requests, order
        self._next = 0
        self.seen: set[int] = set()
        self.done: list[tuple[float, float]] = []
        self.kept: list[tuple[int, bytes, str | None]] = []
        self.failed: str | None = None
        self.stopped = False
        self._open: set[asyncio.Transport] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, port: int) -> None:
        try:
            await self._connection(port, None)
        except OSError as error:
            raise UnavailableError(f"no connection to port {port}: {error}") from error

    def again(self, port: int, unanswered: _Unanswered) -> None:
        """Ask what a server that ends a connection after an answer did not look at, over another."""

        async def connect() -> None:
            try:
                await self._connection(port, unanswered)
            except OSError as error:
                self.failed = f"no connection to port {port}: {error}"

        task = asyncio.get_running_loop().create_task(connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, port: int, unanswered: _Unanswered | None) -> None:
        transport, _ = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self, port, unanswered), "127.0.0.1", port
        )
        self._open.add(transport)

    def close(self) -> None:
        """Ask no more."""
        self.stopped = True
        for task in self._tasks:
            task.cancel()
        for transport in self._open:
            transport.close()

    async def until(self, over: Callable[[], bool]) -> None:
        """Let the connections ask until ``over()``; how often that is looked at adds nothing to a latency."""
        last, count = time.perf_counter(), len(self.done)
        while not over():
            await asyncio.sleep(0.002)
            if self.failed is not None:
                raise UnavailableError(self.failed)
            if len(self.done) > count:
                last, count = time.perf_counter(), len(self.done)
            elif time.perf_counter() - last > _ANSWER_SECONDS:
                raise UnavailableError(f"no answer for {_ANSWER_SECONDS:.0f} s")

    def following(self) -> tuple[int, bytes]:
        number = self._order[self._next % len(self._order)]
        self._next += 1
        return number, self._requests[number]

    def answered(self, number: int, taken: float, body: list[bytes], length: str | None) -> None:
        self.done.append((time.perf_counter(), taken))
        if number not in self.seen or len(self.done) % _KEPT == 0:
            self.seen.add(number)
            self.kept.append((number, b"".join(body), length))


class _Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, load: _Load, port: int, unanswered: _Unanswered | None) -> None:
        self._load, self._port, self._unanswered = load, port, unanswered
        self._spent = self._heard = False
        self._parser = httptools.HttpResponseParser(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, which has all of it
        if self._load.stopped:
            self._transport.close()
            return
        self._ask()

    def _ask(self) -> None:
        self._body: list[bytes] = []
        self._length: str | None = None
        self._heard = False
        if self._unanswered is None:
            self._asked = (*self._load.following(), time.perf_counter())
        else:
            self._asked, self._unanswered = self._unanswered, None
        self._transport.write(self._asked[1])

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._load.failed = f"not an answer in HTTP: {error}"
            self._transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._length = value.decode("ascii", "replace")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        number, _, began = self._asked
        taken = time.perf_counter() - began
        status = self._parser.get_status_code()
        if status != 200:
            said = b"".join(self._body)[:500].decode("utf-8", "replace")
            self._load.failed = f"answered with status {status}: {said}"
            self._transport.close()
            return
        self._load.answered(number, taken, self._body, self._length)
        self._spent = True
        if not self._load.stopped:
            self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._load.failed is not None or self._load.stopped:
            return
        if self._spent and not self._heard:
            self._load.again(self._port, self._asked)  # its time runs on from when it was first asked
        else:
            self._load.failed = f"the connection was cut: {exc or 'by the server'}"
