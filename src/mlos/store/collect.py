"""Garbage collection: what no reference, no lease and no living process needs."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mlos.store import scratch
from mlos.store.integrity import leaves
from mlos.store.layout import DIGEST, Layout
from mlos.store.locks import if_free


@dataclass(frozen=True)
class Collected:
    """What a collection freed, or would free: files, and their bytes. A file with several names counts once."""

    files: int
    bytes: int

    def __add__(self, other: Collected) -> Collected:
        """Both together."""
        return Collected(self.files + other.files, self.bytes + other.bytes)


def collect(layout: Layout, referenced: set[str], *, dry_run: bool) -> Collected:
    """Delete abandoned work, unneeded packages, then the blobs left without a package.

    The caller holds the store's lock. ``referenced`` are the digests that references name. A blob is needed
    while it has a second name: each package folder, and each commit under way, holds a hard link to it.
    """
    tally = _Tally()
    for folder in (layout.staging, layout.partials):
        for path in scratch.abandoned(folder):
            tally.add_tree(path)
            if not dry_run:
                scratch.discard(path)
    for digest in _digests(layout.packages):
        if digest not in referenced:
            with if_free(layout.lease(digest)) as unused:
                if unused:
                    tally.add_tree(layout.package(digest))
                    if not dry_run:
                        _remove_package(layout, digest)
    for sha256 in _digests(layout.blobs):
        blob = layout.blob(sha256)
        if tally.is_last_name(blob):
            tally.add(blob)
            if not dry_run:
                blob.unlink()
    if not dry_run:
        for digest in set(_digests(layout.leases)) - set(_digests(layout.packages)):
            with if_free(layout.lease(digest)) as unused:
                if unused:
                    layout.lease(digest).unlink()
    return tally.total()


def _remove_package(layout: Layout, digest: str) -> None:
    # Renamed away first, so that a kill leaves a whole package or abandoned work.
    with scratch.area(layout.staging) as trash:
        layout.package(digest).rename(trash / digest)
        layout.lease(digest).unlink()


def _digests(folder: Path) -> list[str]:
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if DIGEST.fullmatch(path.name))


@dataclass
class _Tally:
    """Names deleted so far, by the file they name; a file is freed when all its names are."""

    names: Counter[int] = field(default_factory=Counter)
    files: dict[int, os.stat_result] = field(default_factory=dict)

    def add(self, path: Path) -> None:
        status = path.lstat()
        self.files.setdefault(status.st_ino, status)
        self.names[status.st_ino] += 1

    def add_tree(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            for leaf, kind in leaves(path).items():
                if kind != "an empty folder":
                    self.add(path / leaf)
        elif os.path.lexists(path):
            self.add(path)

    def is_last_name(self, path: Path) -> bool:
        status = path.lstat()
        status = self.files.get(status.st_ino, status)
        return status.st_nlink - self.names[status.st_ino] == 1

    def total(self) -> Collected:
        freed = [status for inode, status in self.files.items() if status.st_nlink == self.names[inode]]
        return Collected(len(freed), sum(status.st_size for status in freed))
