"""Requests that arrive when they arrive, whether or not others are answered: an open loop of Poisson arrivals.

A latency runs from when a request was to be sent, so a server cannot hide its queue behind a waiting client.
A request goes over a connection that is idle, or over a new one. 429 and 503 are refusals, which are counted;
any other status, or a cut connection, is a failure.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import httptools
import uvloop

from mlos.errors import UnavailableError

_ACCEPTED = 200
_REFUSED = frozenset({429, 503})
_KEPT = 100
_ANSWER_SECONDS = 120.0
_WARM_SHARE = 4
"""So many times as many answers are counted as there were before, while the queue came to its length."""


@dataclass
class Arrived:
    """What became of the requests of a stretch; the latencies, in seconds, are of those that were accepted."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0
    late: list[float] = field(default_factory=list)
    """Seconds from when each was to be sent until it was, which are in its latency: the client's own share."""
    answers: list[tuple[int, bytes, str | None]] = field(default_factory=list)
    """Kept bodies, as in :class:`benchmarks.client.Timed`."""


def arrive(port: int, requests: Sequence[bytes], rate: float, accepted: int, seed: int) -> Arrived:
    """Send ``rate`` requests a second until ``accepted`` are answered, after a quarter as many that warm up.

    Raises:
        UnavailableError: if a connection is cut, or an answer is neither accepted nor a refusal, or none comes.
    """
    return uvloop.run(_Arrivals(port, requests, seed).run(rate, accepted))


class _Arrivals:
    """The stretch as its connections see it."""

    def __init__(self, port: int, requests: Sequence[bytes], seed: int) -> None:
        self._port, self._requests = port, requests
        self._chance = random.Random(seed)
        self._idle: list[_Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._all: set[_Connection] = set()
        self._under_way = 0
        self._counted_from: float | None = None
        self._warm = 0
        self._seen: set[int] = set()
        self._failed: str | None = None
        self._over = False
        self.found = Arrived()

    async def run(self, rate: float, accepted: int) -> Arrived:
        try:
            await self._arrive(rate, accepted)
            await self._rest()
        finally:
            self._over = True
            for each in list(self._all):  # the loop would wait for them
                each.close()
        return self.found

    async def _arrive(self, rate: float, accepted: int) -> None:
        due, count, last = time.perf_counter(), 0, time.perf_counter()
        seen = (0, 0, 0)
        while len(self.found.latencies) < accepted:
            while due <= time.perf_counter():
                self._send(count % len(self._requests), due)
                count += 1
                due += self._chance.expovariate(rate)
            self._raise()
            if self._counted_from is None and self._warm >= accepted // _WARM_SHARE:
                self._counted_from = due
            if seen != (seen := (self._warm, len(self.found.latencies), self.found.refused)):
                last = time.perf_counter()
            elif time.perf_counter() - last > _ANSWER_SECONDS:
                raise UnavailableError(f"nothing accepted or refused for {_ANSWER_SECONDS:.0f} s")
            await asyncio.sleep(max(0.0, min(due - time.perf_counter(), 0.05)))

    async def _rest(self) -> None:
        """Wait for those that are under way."""
        end = time.perf_counter() + _ANSWER_SECONDS
        while self._under_way:
            self._raise()
            if time.perf_counter() > end:
                raise UnavailableError(f"{self._under_way} requests unanswered after {_ANSWER_SECONDS:.0f} s")
            await asyncio.sleep(0.002)
        self._raise()

    def _raise(self) -> None:
        if self._failed is not None:
            raise UnavailableError(self._failed)

    def _send(self, number: int, due: float) -> None:
        self._under_way += 1
        if self._idle:
            self._ask(self._idle.pop(), number, due)
            return
        task = asyncio.get_running_loop().create_task(self._open(number, due))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, number: int, due: float) -> None:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), "127.0.0.1", self._port
            )
        except OSError as error:
            self.fail(f"no connection to port {self._port}: {error}")
            return
        self._all.add(connection)
        self._ask(connection, number, due)

    def _ask(self, connection: _Connection, number: int, due: float) -> None:
        if self._counts(due):
            self.found.late.append(time.perf_counter() - due)
        connection.ask(number, due, self._requests[number])

    def _counts(self, due: float) -> bool:
        return self._counted_from is not None and due >= self._counted_from

    def answered(
        self, connection: _Connection, status: int, body: bytes, length: str | None, *, again: bool
    ) -> None:
        """An answer came whole; ``again`` says whether its connection takes another request."""
        self._under_way -= 1
        number, due = connection.asked
        if again:
            self._idle.append(connection)
        if status in _REFUSED:
            self.found.refused += self._counts(due)
        elif status != _ACCEPTED:
            self.fail(f"answered with status {status}: {body[:500].decode('utf-8', 'replace')}")
        else:
            if self._counts(due):
                self.found.latencies.append(time.perf_counter() - due)
            else:
                self._warm += 1
            if number not in self._seen or len(self.found.latencies) % _KEPT == 0:
                self._seen.add(number)
                self.found.answers.append((number, body, length))

    def lost(self, connection: _Connection, why: Exception | None, *, asking: bool) -> None:
        """A connection ended; one that waits for no answer may."""
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if asking and not self._over:
            self.fail(f"the connection was cut: {why or 'by the server'}")

    def fail(self, why: str) -> None:
        """The stretch ends with this."""
        self._failed = self._failed or why


class _Connection(asyncio.Protocol):
    """One connection, with at most one request under way."""

    def __init__(self, arrivals: _Arrivals) -> None:
        self._arrivals = arrivals
        self._asking = False
        self.asked = (0, 0.0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class, which has all of it

    def ask(self, number: int, due: float, request: bytes) -> None:
        """Send a request."""
        self.asked, self._asking = (number, due), True
        self._body: list[bytes] = []
        self._length: str | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)

    def close(self) -> None:
        """End it."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._arrivals.fail(f"not an answer in HTTP: {error}")
            self._transport.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._length = value.decode("ascii", "replace")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._asking = False
        again = self._parser.should_keep_alive() and not self._transport.is_closing()
        status, body = self._parser.get_status_code(), b"".join(self._body)
        self._arrivals.answered(self, status, body, self._length, again=again)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrivals.lost(self, exc, asking=self._asking)
