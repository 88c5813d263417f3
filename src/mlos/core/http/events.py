"""Answers that come in parts: server-sent events, and the client that may leave at any moment.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_T = TypeVar("_T")


def event(data: Any, name: str | None = None) -> bytes:
    """One event; ``data`` is JSON already where it is bytes."""
    content = data if isinstance(data, bytes) else msgspec.json.encode(data)
    head = f"event: {name}\n".encode() if name is not None else b""
    return head + b"data: " + content + b"\n\n"


class EventStream(Response):
    """The events of a generator, as they come. A client that leaves, or takes nothing for long, ends it.

    ``source`` is what the events are made of; it is closed in any case, even if no event was ever asked for.
    ``silence`` is how many seconds a client may leave an event untaken.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], source: AsyncGenerator[Any, None], *, silence: float
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._source, self._silence = events, source, silence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them all."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        async with contextlib.aclosing(self._source), contextlib.aclosing(self._events):
            await send(start)
            with contextlib.suppress(ClientDisconnect, TimeoutError):
                await unless_left(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async for content in self._events:
            async with asyncio.timeout(self._silence):
                await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def unless_left(receive: Receive, working: Awaitable[_T]) -> _T:
    """The result of ``working``, or ``ClientDisconnect`` as soon as the client leaves, which cancels it."""
    work = asyncio.ensure_future(working)
    left = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({work, left}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        left.cancel()
        if not work.done():
            work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
