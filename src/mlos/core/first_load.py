"""Tuning at the first load: a model that has no record on this host is tuned before its worker starts.

It is measured by a process of its own (:mod:`mlos.core.tuning`), which does what ``axon tune`` does: the server
keeps its event loop and its memory, and what is being measured can be ended at any moment. One model at a time,
for two would measure each other; what else the server computes meanwhile is in the measurements too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from mlos.core.log import fields
from mlos.core.room import Room, expected_bytes
from mlos.core.spawned import Spawned, lines
from mlos.errors import MlosError, WorkerError
from mlos.host.child import environment
from mlos.host.process import children_of, resident_bytes
from mlos.store import Package
from mlos.tune import Precision
from mlos.tune.candidates import require_golden

_GOODBYE_SECONDS = 2.0
_LONGEST_LINE = 1 << 16

_log = logging.getLogger(__name__)

Tell = Callable[[str], None]


class Order(msgspec.Struct, frozen=True):
    """What the tuning process is to do: tune a package of the store below ``home``, and end with ``parent``."""

    parent: int
    home: str
    digest: str
    precision: Precision
    threads: int


class FirstLoad:
    """The tunings of one server, in the class ``precision``; ``threads`` are those of the default."""

    def __init__(self, home: Path, precision: Precision, threads: int, room: Room) -> None:
        self._home, self._precision, self._threads, self._room = home, precision, threads, room
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._untunable: dict[str, str] = {}
        self._ended = False

    def untunable(self, package: Package) -> str | None:
        """Why ``package`` could not be tuned, if that was tried; it is not tried again."""
        return self._untunable.get(package.digest)

    def end(self) -> None:
        """End what is being measured and measure nothing any more; what waits for it is served untuned."""
        self._ended = True
        for task in self._tasks:
            if not task.cancelling():
                task.cancel()

    async def tune(self, package: Package, doubt: Callable[[], str | None], tell: Tell) -> None:
        """Tune ``package`` unless ``doubt``, which may take a second, finds nothing against its record.

        What keeps it from being tuned is logged, and told by :meth:`untunable`.
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._ended or package.digest in self._untunable or await asyncio.to_thread(doubt) is None:
                return
            require_golden(package)
            if self._turn.locked():
                tell("waits until another model has been tuned on this host")
            async with self._turn:
                if (why := await asyncio.to_thread(doubt)) is not None:  # not tuned by others meanwhile
                    await self._tune(package, why, tell)
        except (MlosError, OSError) as error:
            reason = error.message if isinstance(error, MlosError) else f"{error.strerror}"
            hint = error.hint if isinstance(error, MlosError) else None
            self._untunable[package.digest] = reason
            _log.warning(
                "model cannot be tuned: it is served untuned",
                extra=fields(**_identity(package), reason=reason, hint=hint),
            )
        finally:
            self._tasks.discard(task)

    async def _tune(self, package: Package, why: str, tell: Tell) -> None:
        began = time.monotonic()
        tell("is being tuned on this host")
        _log.info("model is being tuned", extra=fields(**_identity(package), why=why))
        tenant = _Measured(package)
        async with self._room.taken_by(tenant):
            await self._measure(package, tenant, tell)
        seconds = round(time.monotonic() - began, 3)
        _log.info("model tuned", extra=fields(**_identity(package), seconds=seconds))

    async def _measure(self, package: Package, tenant: _Measured, tell: Tell) -> None:
        """See the process through, or end it and its children when this is cancelled."""
        order = Order(
            parent=os.getpid(),
            home=str(self._home.absolute()),
            digest=package.digest,
            precision=self._precision,
            threads=self._threads,
        )
        with tempfile.TemporaryDirectory(prefix=".mlos-tuning-", ignore_cleanup_errors=True) as private:
            process = await Spawned.start(
                # -P: no file of the working folder can pass for a module.
                (sys.executable, "-P", "-m", "mlos.core.tuning"),
                env=environment(Path(private)),
                limit=_LONGEST_LINE,
            )
            process.tell(msgspec.json.encode(order))
            tenant.pid = process.pid
            listening = asyncio.create_task(_listen(process.stderr, package, tell))
            try:
                status = await process.wait()
                error = await listening
            finally:
                await _end(process)
                listening.cancel()
        if error is not None:
            raise error
        if status:
            raise WorkerError(f"the process that tunes {package.name} ended with status {status}; see the log")


class _Measured:
    """The memory of a tuning: the default's engine and a candidate's, open in one process."""

    last_used = math.inf
    idle = False

    def __init__(self, package: Package) -> None:
        self.name = f"{package.name} (tuning)"
        self.needed_bytes = 2 * expected_bytes(package.manifest.size)
        self.pid: int | None = None

    def memory_bytes(self) -> int | None:
        """Resident memory of the process and of the child that measures."""
        if self.pid is None:
            return None
        return sum(resident_bytes(pid) or 0 for pid in (self.pid, *children_of(self.pid)))

    async def evict(self) -> None:
        """Nobody may ask for it."""
        raise AssertionError("a tuning is never idle")


async def _listen(stream: asyncio.StreamReader, package: Package, tell: Tell) -> MlosError | None:
    """Pass on what is being measured, and what a library says; the error that it ended with, if it did."""
    error = None
    async for line in lines(stream):
        match _parsed(line):
            case {"step": str(step)}:
                tell(f"is being tuned on this host: {step}")
            case {"error": dict(said)}:
                error = MlosError.from_dict(said)
            case _:
                text = line.decode(errors="replace").rstrip()
                _log.info(text, extra=fields(**_identity(package), source="tuning"))
    return error


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


async def _end(process: Spawned) -> None:
    """Let a process end that is well, with its children; end one that is not. They die with it."""
    if process.returncode is None:
        process.terminate()
        dead = asyncio.create_task(process.wait())
        await asyncio.wait({dead}, timeout=_GOODBYE_SECONDS)
        if not dead.done():
            process.kill()
            await dead
    process.close()


def _identity(package: Package) -> dict[str, str]:
    return {"model": package.name, "digest": package.digest[:12]}
