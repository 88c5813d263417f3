"""One life of a worker: a process that is started, heard, watched and ended.

What it does not know: why it is started, how many came before it and whether another will follow.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec

from mlos.accel import FrontChannel
from mlos.core.chosen import Chooser, Served
from mlos.core.log import fields
from mlos.core.room import Room
from mlos.core.spare import Spare
from mlos.core.spawned import Spawned, lines
from mlos.core.worker_protocol import Orders, Report
from mlos.errors import DeadlineError, MlosError, UnavailableError, WorkerError
from mlos.host.process import peak_bytes, resident_bytes
from mlos.store import Store
from mlos.tasks import Limits

OVERRUN_SECONDS = 5.0
"""How far a worker may overrun the deadline of what it computes before it is taken for hung and ended."""
_GOODBYE_SECONDS = 1.0
_TAIL_LINES = 5
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Terms:
    """On what terms every worker of a server runs. ``load_timeout`` is in seconds, ``replicas`` per model.

    ``batch_wait`` is in seconds: how long a request waits for others with which it could be computed.
    """

    load_timeout: float
    limits: Limits
    chooser: Chooser
    room: Room
    spare: Spare
    sequences: int = 1
    replicas: int = 1
    batch_wait: float = 0.0


class Life:
    """A worker process at one or several places of a channel: each of its streams claims at one of its own.

    ``loss`` makes what the requests that it dies with are told. A ``wary`` one opens only what is verified.
    """

    def __init__(
        self,
        name: str,
        served: Served,
        store: Store,
        terms: Terms,
        channel: FrontChannel,
        places: Sequence[int],
        loss: Callable[[], MlosError],
        *,
        wary: bool,
    ) -> None:
        self.started = time.monotonic()
        self.peak_bytes = 0
        """The most memory it is known to have had."""
        self._name, self._served, self._store, self._terms = name, served, store, terms
        self._channel, self._places, self._loss, self._wary = channel, places, loss, wary
        self._process: Spawned | None = None
        self._ended_for: str | None = None
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    async def run(self, is_ready: Callable[[Report], None]) -> str:
        """Start the process and see it through; ``is_ready`` is called once. Returns how it ended.

        Raises:
            MlosError: it refused to load the model.
        """
        try:
            process = self._process = await self._spawn()
        except OSError as error:  # no more processes, descriptors or memory: it may go better later
            ended = f"could not be started: {error.strerror}"
            self._leave(UnavailableError(ended))
            return ended
        listening = asyncio.create_task(self._listen(process.stderr))
        dead = asyncio.create_task(process.wait())
        try:
            try:
                report = await self._first_word(process.stdout)
            finally:
                self._terms.spare.prepare()
            if report is not None:
                if report.error is not None:
                    raise MlosError.from_dict(report.error)
                self._tail.clear()  # what it said while it loaded will not explain its death
                self.note_peak()
                is_ready(report)
            while not (await asyncio.wait({dead}, timeout=1.0))[0]:
                self.note_peak()
                if max(map(self._channel.overdue, self._places)) > OVERRUN_SECONDS:
                    self.end(f"overran a request's deadline by {OVERRUN_SECONDS:g} s and was ended")
            await listening
            return self._epitaph(dead.result())
        finally:
            await self._bid_farewell(process, dead)
            listening.cancel()

    def end(self, reason: str) -> None:
        """End the worker for a reason of ours."""
        if self._process is not None and self._process.returncode is None and self._ended_for is None:
            self._ended_for = reason
            self._process.kill()

    @property
    def pid(self) -> int | None:
        """The process, once there is one."""
        return self._process.pid if self._process is not None else None

    @property
    def identity(self) -> dict[str, str | int | None]:
        """What the log calls it."""
        return {"model": self._name, "digest": self._served.package.digest[:12], "worker": self.pid}

    def memory_bytes(self) -> int | None:
        """Resident memory, while the process lasts."""
        return resident_bytes(self.pid) if self.pid is not None else None

    def note_peak(self) -> int | None:
        """The most resident memory it has had, while it lasts; it is noted as :attr:`peak_bytes`."""
        peak = peak_bytes(self.pid) if self.pid is not None else None
        self.peak_bytes = max(self.peak_bytes, peak or 0)
        return peak

    async def _spawn(self) -> Spawned:
        served, choice = self._served, self._served.choice
        orders = Orders(
            parent=os.getpid(),
            store=str(self._store.root.absolute()),
            digest=served.package.digest,
            threads=choice.candidate.threads,
            limits=self._terms.limits,
            started=self.started,
            engine=choice.candidate.engine,
            precision=choice.candidate.precision,
            compiled=str(served.compiled.absolute()) if served.compiled is not None else None,
            most=choice.batching.most if choice.batching is not None else 1,
            longest=choice.batching.longest if choice.batching is not None else None,
            sequences=self._terms.sequences,
            wary=self._wary,
        )
        with ExitStack() as ours:
            descriptors = []
            for place in self._places:
                descriptors.append(self._channel.connect(place))
                ours.callback(os.close, descriptors[-1])
            process = await self._terms.spare.take()
            process.tell(msgspec.json.encode(orders), descriptors)
        return process

    async def _first_word(self, stream: asyncio.StreamReader) -> Report | None:
        """What the worker reports once it has loaded; nothing if it died before."""
        name = self._name
        try:
            async with asyncio.timeout(self._terms.load_timeout):
                text = await stream.readline()
            return msgspec.json.decode(text, type=Report) if text else None
        except TimeoutError as error:
            raise DeadlineError(
                f"model {name} took longer than {self._terms.load_timeout:g} s to load",
                hint="raise --load-timeout",
            ) from error
        except ValueError as error:  # no JSON, not a report, or a line without end
            raise WorkerError(f"the worker of {name} reported nonsense: {error}") from error

    async def _bid_farewell(self, process: Spawned, dead: asyncio.Task[int]) -> None:
        """Hang up, which ends a worker that is well; end one that is not."""
        self._leave(self._loss())
        if self._ended_for is None:
            await asyncio.wait({dead}, timeout=_GOODBYE_SECONDS)
        if not dead.done():
            process.kill()
            await dead
        process.close()

    def _leave(self, error: MlosError) -> None:
        for place in self._places:
            self._channel.disconnect(error, place)

    async def _listen(self, stream: asyncio.StreamReader) -> None:
        """Pass on what the worker writes to stderr."""
        async for text in lines(stream):
            said = _COLOURS.sub("", text.decode(errors="replace").rstrip())
            self._tail.append(said)
            _log.info(said, extra=fields(**self.identity, source="worker"))

    def _epitaph(self, status: int) -> str:
        """How the worker ended: our reason if we ended it, else its status and its last words."""
        if self._ended_for is not None:
            return self._ended_for
        names = {each.value: each.name for each in signal.Signals}
        ended = f"ended with status {status}" if status >= 0 else f"was ended by {names.get(-status, -status)}"
        return f"{ended}: {self._tail[-1][:200]}" if self._tail else ended
