"""uvicorn's HTTP/1.1 with the limits it lacks: on the head's size and time, and on what comes after an answer.

A head that is too large is answered 431, one that does not come in time 408, one that is not HTTP 400, in our
own form. A body that is still coming when its answer is out (a 404, say) is thrown away for a while, so that
the client gets to read the answer instead of a reset connection; then the connection is cut.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from mlos.core.http.errors import HeadTooLargeError, SlowRequestError, error_body
from mlos.errors import MlosError, UsageError

HEAD_LIMIT = 64 << 10
HEAD_SECONDS = 10.0
LINGER_LIMIT = 64 << 20
LINGER_SECONDS = 5.0
MOST_PIPELINED = 64
"""Requests of one connection that may wait behind the one being answered."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: int | None = 0
        """Bytes of the request line and headers so far; None while a body is read."""
        self._lingered = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait_at_most(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._wait_at_most(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, within the limits."""
        if self._head is not None:
            if self._head == 0 and self._timer is None:
                self._wait_at_most(HEAD_SECONDS)
            self._head += len(data)
        elif self.cycle.response_complete:
            self._lingered += len(data)
            if self._timer is None:
                self._wait_at_most(LINGER_SECONDS)
            if self._lingered > LINGER_LIMIT:
                self.transport.close()
                return
        super().data_received(data)
        # The piece that completes a head may hold much of the body too: a complete head is measured by itself.
        if self._head is not None and self._head > HEAD_LIMIT and not self.transport.is_closing():
            self._refuse(_head_too_large())

    def on_headers_complete(self) -> None:
        """Start on the request, unless its head is over the limit."""
        self._wait_at_most(None)
        if len(self.pipeline) >= MOST_PIPELINED:  # who sends so many without reading gets no more answers
            self.transport.close()
        if self.transport.is_closing():
            return
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_LIMIT:
            self._refuse(_head_too_large())
            return
        self._head, self._lingered = None, 0
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take in a header; trailers, which nothing here reads, are let go instead of kept."""
        if self._head is not None:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take in a part of a body, unless its head was refused."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The next thing to come is a head."""
        self._wait_at_most(None)
        self._head = 0
        if not self.transport.is_closing():
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are not HTTP."""
        self._refuse(UsageError(msg, field="request", expected="HTTP/1.1"))

    def _late(self) -> None:
        self._timer = None
        if self._head is None or (self._head == 0 and self.cycle is not None):
            self.transport.close()  # lingered long enough
            return
        self._refuse(
            SlowRequestError(f"the request's head did not come within {HEAD_SECONDS:g} s", field="head")
        )

    def _refuse(self, error: MlosError) -> None:
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self.transport.close()  # an answer is under way, into which another must not be written
            return
        body = error_body(error, None)
        phrase = HTTPStatus(error.http_status).phrase
        head = (
            f"HTTP/1.1 {error.http_status} {phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def _wait_at_most(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._late)


def _head_too_large() -> HeadTooLargeError:
    return HeadTooLargeError(
        "the request line and headers are too large", field="head", expected=f"at most {HEAD_LIMIT} bytes"
    )
