"""Work in progress: folders and files that belong to one living process, told by the lock file beside each."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlos.store.locks import SUFFIX, if_free, locked


@contextmanager
def area(folder: Path) -> Iterator[Path]:
    """A new private folder in ``folder``, gone at the end."""
    path = folder / f"{os.getpid()}-{secrets.token_hex(8)}"
    with owned(path):
        path.mkdir(mode=0o700)
        try:
            yield path
        finally:
            shutil.rmtree(path)


@contextmanager
def owned(path: Path) -> Iterator[Path]:
    """Hold ``path``, which need not exist, waiting for its holder; the lock file goes when ``path`` is gone."""
    lock = path.with_name(path.name + SUFFIX)
    with locked(lock):
        try:
            yield path
        finally:
            if not os.path.lexists(path):
                lock.unlink(missing_ok=True)


def abandoned(folder: Path) -> Iterator[Path]:
    """Everything in ``folder`` that no living process holds; each is held until the next is asked for."""
    if not folder.exists():
        return
    for name in sorted({path.name.removesuffix(SUFFIX) for path in folder.iterdir()}):
        with if_free(folder / (name + SUFFIX)) as free:
            if free:
                yield folder / name


def discard(path: Path) -> None:
    """Delete what :func:`abandoned` gave, and its lock file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.with_name(path.name + SUFFIX).unlink(missing_ok=True)
