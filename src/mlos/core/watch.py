"""Who watches a run of the engine: one for which nobody waits any more is ended, and the worker is free again.

The worker's own thread is inside the engine meanwhile. A second one looks at the channel in its place, which
the first does not touch until the run is over; a run that is soon over is never looked at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mlos.core.jobs import gone
from mlos.engines import Engine, interruptible
from mlos.errors import MlosError

LOOK_SECONDS = 0.05
"""Between two looks, asleep: nothing tells that somebody has left but the channel, which must be asked."""


class Watch:
    """Over the runs that one thread makes of an engine. One that cannot be interrupted is not watched."""

    def __init__(self, engine: Engine) -> None:
        self._interrupt = engine.interrupt if interruptible(engine) else None
        self._changed = threading.Condition()
        self._thread = 0
        """Whose run is under way."""
        self._abandoned: Callable[[], bool] | None = None
        """Whether nobody waits for the run that is under way; None between runs."""
        self._resting = False
        self._ended = False
        self._looking = False

    @contextmanager
    def over(self, abandoned: Callable[[], bool]) -> Iterator[None]:
        """Watch the run within: while it lasts, ``abandoned`` is asked by another thread.

        Raises:
            DeadlineError: in place of what the engine says of a run that was ended.
        """
        if self._interrupt is None:
            yield
            return
        if not self._looking:
            threading.Thread(target=self._look, args=(self._interrupt,), name="watch", daemon=True).start()
            self._looking = True
        with self._changed:
            self._abandoned, self._ended, self._thread = abandoned, False, threading.get_ident()
            if self._resting:
                self._changed.notify()
        try:
            yield
        except MlosError:
            with self._changed:
                if self._ended:
                    raise gone() from None
            raise
        finally:
            with self._changed:
                self._abandoned = None

    def _look(self, interrupt: Callable[[int], None]) -> None:
        while True:
            with self._changed:
                while self._abandoned is None:
                    self._resting = True
                    self._changed.wait()
                self._resting, seen = False, self._abandoned
            time.sleep(LOOK_SECONDS)
            with self._changed:
                if self._abandoned is seen and seen():
                    self._ended = True
                    interrupt(self._thread)
