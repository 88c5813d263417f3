"""A child process under the event loop, started as ``vfork`` does it.

The event loop's own way forks, and runs Python in the child before it becomes another program. In a process
with threads that are not Python's, such as gRPC's, that child dies or hangs now and then, for a lock that one
of them held; and one that hangs halts the loop, which waits for it. :class:`subprocess.Popen` runs nothing
between the two. Its few milliseconds are spent in the loop's own thread: Linux ends a child that has asked to
end with its parent when the thread that started it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import IO, Self

_PIECE, _MOST_DESCRIPTORS = 1 << 16, 253
"""Of one message, in bytes and in number: Linux takes no more of the latter (``SCM_MAX_FD``)."""


async def lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What a child writes, line by line, until it ends; a line beyond the limit is left out."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:  # too long: the stream has thrown it away
            continue
        if not line:
            return
        yield line


def told() -> tuple[bytes, list[int]]:
    """For the child: what it is told, once it is; nothing where the parent has gone without a word."""
    with socket.socket(fileno=os.dup(0)) as words:
        message, descriptors, _, _ = socket.recv_fds(words, _PIECE, _MOST_DESCRIPTORS)
        while piece := words.recv(_PIECE) if message else b"":
            message += piece
    return message, descriptors


class Spawned:
    """A running child; ``stdout`` and ``stderr`` are read line by line, lines of up to ``limit`` bytes.

    Its stdin is a socket, on which it waits for what it is told: a message, and descriptors where it takes them
    (:func:`told`).
    """

    def __init__(self, process: subprocess.Popen[bytes], words: socket.socket) -> None:
        self._process, self._words = process, words
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._transports: list[asyncio.ReadTransport] = []
        self._descriptor = os.pidfd_open(process.pid)
        self._loop.add_reader(self._descriptor, self._reap)
        self.stdout: asyncio.StreamReader
        self.stderr: asyncio.StreamReader

    @classmethod
    async def start(cls, command: Sequence[str], *, env: Mapping[str, str], limit: int) -> Self:
        """Start ``command``.

        Raises:
            OSError: there are no more processes or descriptors, or there is no such program.
        """
        ours, its = socket.socketpair()
        try:
            with its:
                process = subprocess.Popen(  # noqa: S603 (the caller's own command)
                    command, stdin=its.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
                )
        except BaseException:
            ours.close()
            raise
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            self = cls(process, ours)
            self.stdout = await self._reader(process.stdout, limit)
            self.stderr = await self._reader(process.stderr, limit)
        except BaseException:
            process.kill()
            ours.close()
            raise
        return self

    def tell(self, message: bytes, descriptors: Sequence[int] = ()) -> None:
        """Tell it ``message``, of which there is one, and hand it copies of ``descriptors``.

        Nothing where it has ended: that will tell itself.
        """
        with self._words, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._words, [message], descriptors)  # fits into an empty socket

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """How it ended, as :mod:`subprocess` tells it; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    def terminate(self) -> None:
        """Ask it to end; nothing if it has ended."""
        self._process.terminate()

    def kill(self) -> None:
        """End it now; nothing if it has ended."""
        self._process.kill()

    async def wait(self) -> int:
        """Its return code, once it has ended."""
        return await asyncio.shield(self._ended)

    def close(self) -> None:
        """Read no more of what it writes, and tell it nothing."""
        self._words.close()
        for transport in self._transports:
            transport.close()

    async def _reader(self, stream: IO[bytes], limit: int) -> asyncio.StreamReader:
        reader = asyncio.StreamReader(limit, self._loop)
        transport, _ = await self._loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader, loop=self._loop), stream
        )
        self._transports.append(transport)
        return reader

    def _reap(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._ended.set_result(self._process.wait())
