"""What the disk does for the store: durable writes, and its refusals as errors a person can act on."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlos.errors import NoRoomError, RefusedError, UnavailableError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)


def require_room(root: Path, needed: int) -> None:
    """Raise :class:`NoRoomError` unless the file system that will hold ``root`` has ``needed`` bytes free."""
    available = _available(root)
    if needed > available:
        raise _no_room(root, needed, available, None)


@contextmanager
def room_explained(root: Path, needed: int | None = None) -> Iterator[None]:
    """Turn a full disk, a used-up quota or a file size limit met by the body into :class:`NoRoomError`."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_room(root, needed, _available(root), error) from error


@contextmanager
def changing(root: Path, needed: int | None = None) -> Iterator[None]:
    """Turn what the system answers to the store's own writes into errors of ours.

    Raises:
        NoRoomError: the disk is full.
        RefusedError: the store is read-only, for this user or altogether.
        UnavailableError: this process has too many files open.
    """
    try:
        with room_explained(root, needed):
            yield
    except OSError as error:
        if error.errno in _READ_ONLY:
            raise RefusedError(
                f"the store {root} cannot be changed: {error.strerror}: {error.filename}",
                expected="a folder this user may write",
                got=error.strerror,
                hint="name a writable folder with MLOS_HOME",
            ) from error
        if error.errno in _TOO_MANY_OPEN:
            raise UnavailableError(
                f"the store {root} cannot be changed now: {error.strerror}", hint="raise the limit: ulimit -n"
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that does not exist yet, durably."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as stream:  # noqa: PTH123  (a descriptor has no path)
        stream.write(data)
        stream.flush()
        os.fsync(descriptor)


def relink(source: Path, target: Path, scratch: Path) -> None:
    """Make ``target`` another name of the file ``source``, in one step; ``scratch`` is a folder of ours."""
    passing = scratch / secrets.token_hex(16)
    passing.hardlink_to(source)
    passing.replace(target)


def _available(root: Path) -> int:
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def _no_room(root: Path, needed: int | None, available: int, error: OSError | None) -> NoRoomError:
    why = f": {error.strerror}" if error and error.strerror else ""
    what = "needs more room" if needed is None else f"needs {needed} bytes"
    return NoRoomError(
        f"the store {root} {what} and has {available} bytes{why}",
        expected=None if needed is None else f"{needed} bytes",
        got=f"{available} bytes",
        hint="free some: axon gc, or name another folder with MLOS_HOME",
    )
