"""Advisory locks that die with their holder: ``flock`` on a file beside the thing that is locked.

The kernel frees the lock when its process ends, however it ends, so there are no stale locks to break. Whoever
deletes a lock file does so while holding it exclusively; whoever gets the lock of a deleted file tries anew.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUFFIX = ".lock"


_FLAGS = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""No link is followed, and a pipe in a lock's place does not make us wait for its writer."""


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file ``path``, waiting for it; it is created where it does not exist."""
    descriptor = _acquire(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file ``path`` exclusively if nobody holds it, and say whether it is held now."""
    try:
        descriptor = _acquire(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)


def _acquire(path: Path, operation: int) -> int:
    # Opened for reading only, so that a lease can be taken on a store that this process may not write.
    while True:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644
        )
        try:
            fcntl.flock(descriptor, operation)
            alive = os.fstat(descriptor).st_nlink > 0
        except BaseException:
            os.close(descriptor)
            raise
        if alive:
            return descriptor
        os.close(descriptor)
