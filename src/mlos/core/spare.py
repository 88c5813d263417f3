"""Workers are started before they are needed, so that a load need not wait for an interpreter and its imports.

One that waits has not been told anything: which model it will hold, and its place of a channel, come with its
orders, and only then does it confine itself. It takes memory, so there is one of them; and processor time while
it starts, so that is done when a load has been over for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from mlos.core.spawned import Spawned
from mlos.host.child import environment

QUIET_SECONDS = 1.0
"""How long after a load another worker is started: what was waiting for the model is answered first."""
_LONGEST_LINE = 1 << 16
_NOWHERE = Path("/nonexistent")
"""The home of a process that has none, as Debian calls it: a worker may write no file."""


class Spare:
    """A worker in waiting, if one is to be kept."""

    def __init__(self, keep: bool = True) -> None:
        self._keep = keep
        self._waiting: Spawned | None = None
        self._start: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        """See to one that waits, in a moment."""
        if self._start is not None:
            self._start.cancel()
        if self._keep:
            self._start = asyncio.create_task(self._start_later())

    async def take(self) -> Spawned:
        """The one that waits, or else one that is started now. Another follows after :meth:`prepare`.

        Raises:
            OSError: none waits, and there are no more processes or descriptors.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.returncode is None:
            return waiting
        if waiting is not None:
            waiting.close()
        return await _start()

    async def close(self) -> None:
        """End the one that waits, and keep none from now on."""
        self._keep = False
        self.prepare()
        if self._start is not None:
            await asyncio.wait({self._start})
        if (waiting := self._waiting) is not None:
            self._waiting = None
            waiting.kill()
            await waiting.wait()
            waiting.close()

    async def _start_later(self) -> None:
        await asyncio.sleep(QUIET_SECONDS)
        if self._waiting is None:
            with contextlib.suppress(OSError):  # whoever takes one will be told
                self._waiting = await _start()


async def _start() -> Spawned:
    return await Spawned.start(
        # -P: no file of the working folder can pass for a module.
        (sys.executable, "-P", "-m", "mlos.core.worker"),
        env={
            **environment(_NOWHERE),
            # No thread may start before the sandbox holds, and the engine's threads are all there are.
            **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"), "1"),
        },
        limit=_LONGEST_LINE,
    )
