"""A claimed request in a worker: its way back through the channel, and the bounds of what may go wrong."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from mlos.accel import Job, WorkerChannel
from mlos.errors import DeadlineError, MlosError, NoRoomError, WorkerError

T = TypeVar("T")


class JobStream:
    """A claimed request's way back through the channel; parts are sent if they are ``wanted``."""

    def __init__(self, channel: WorkerChannel, job: Job, *, wanted: bool) -> None:
        self._channel, self._job, self._wanted = channel, job, wanted

    def emit(self, part: dict[str, Any]) -> None:
        """See :class:`mlos.tasks.Stream`."""
        if self._wanted:
            self._channel.emit(self._job, part)

    def check(self) -> None:
        """See :class:`mlos.tasks.Stream`."""
        if self._channel.cancelled(self._job):
            raise gone()


def gone() -> DeadlineError:
    """What a request ends with that nobody waits for."""
    return DeadlineError("nobody waits for this request any more")


def guarded(work: Callable[[], T]) -> T | MlosError:
    """What ``work`` gives, or the error that it ended with: no request may end the worker."""
    try:
        return work()
    except MlosError as error:
        return error
    except MemoryError:
        return NoRoomError(
            "the request needs more memory than the model's worker has", hint="send less at a time"
        )
    except Exception as error:  # a bug must cost one request, not the worker
        traceback.print_tb(error.__traceback__)  # its place alone: its message may quote the request
        return WorkerError(f"the model's worker failed: {type(error).__name__}")
