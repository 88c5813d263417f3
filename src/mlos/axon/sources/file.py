"""A model on this machine: ``file:FOLDER`` in the hub's layout, or ``file:PATH.onnx`` or ``file:PATH.gguf``.

The commit is the SHA-256 of the tree: over the sorted lines ``SHA256  PATH`` of the files that are taken.

A symbolic link is followed only where it leads to a regular file inside the folder: else an archive with a
planted link could carry any file of this machine into a package. One layout is made of links that lead out, the
hub client's cache (``snapshots/COMMIT/NAME`` to ``blobs/HASH`` beside it); for a folder that stands so, and for
that neighbour alone, they are followed too.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from mlos import formats
from mlos.axon.sources import Resolution, SourceFile
from mlos.axon.sources.digests import sha256_of
from mlos.axon.sources.local import copy_files
from mlos.axon.sources.selection import select, test_data
from mlos.console import Console
from mlos.errors import NotFoundError, RefusedError, UsageError
from mlos.formats.gguf_parts import parts_of
from mlos.model import Reference
from mlos.model.manifest import normal_path
from mlos.store import Store

_DEPTH = 2
"""Folders deep that the hub's layout goes: ``1_Pooling/config.json``, ``onnx/model.onnx``."""


class FileSource:
    """Folders and files of this machine."""

    remote: ClassVar[bool] = False
    forms: ClassVar[bool] = False

    def resolve(self, reference: Reference, *, allow_pickle: bool = False) -> Resolution:
        """Choose among the folder's files, or the file and its external data, and hash them.

        Raises:
            NotFoundError: if there is nothing at the path.
            RefusedError, CorruptError: if there is no model there that MLOS will read.
        """
        path, commit_wanted = _split(reference.path)
        try:
            place = Path(path).expanduser().absolute()
            place.exists()
        except (RuntimeError, OSError) as error:  # no such user; a name too long
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"not a path: {path[:200]!r}: {reason}", field="reference") from error
        if place.is_dir():
            selection = select(_names(place), str(place), allow_pickle=allow_pickle)
            paths, notes, root = selection.paths, selection.notes, place
        elif place.exists():
            (paths, notes), root = _single(place), place.parent
        else:
            raise NotFoundError(f"{place} does not exist", field="reference", got=str(place))
        files = tuple(_source_file(root, path) for path in paths)
        tree = "".join(f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
        commit = hashlib.sha256(tree.encode()).hexdigest()
        if commit_wanted not in (None, commit):
            raise NotFoundError(
                f"{place} has changed: it is at commit {commit[:12]}, not {commit_wanted}",
                field="revision",
                expected=commit_wanted,
                got=commit,
                hint=f"axon install file:{place}",
            )
        return Resolution(
            reference=replace(reference, path=str(place), revision=commit),
            commit=commit,
            weights="local",
            licence=None,
            files=files,
            size=sum(file.size for file in files),
            notes=notes,
        )

    def fetch(self, resolution: Resolution, destination: Path, store: Store, console: Console) -> None:
        """Copy the files; a file that changed since it was hashed is an error."""
        place = Path(resolution.reference.path)
        root = place if place.is_dir() else place.parent
        copy_files(resolution, lambda path: _real(root, path), destination, console)


def _split(path: str) -> tuple[str, str | None]:
    """Path and commit of a reference as the store shows it; a file that is really called so comes first."""
    match = re.fullmatch(r"(.+)@([0-9a-f]{64})", path)
    return (match[1], match[2]) if match and not Path(path).expanduser().exists() else (path, None)


def _single(place: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The file's name, its external data's and its test data's, and notes on what was left.

    Verified here already, so that nothing is copied in vain.
    """
    summary = formats.verify(place)
    if summary.format not in ("onnx", "gguf"):
        raise RefusedError(
            f"{place.name}: a single {summary.format} file is no whole model: its configuration is needed too",
            expected="a folder in the hub's layout, or a single .onnx or .gguf",
            got=summary.format,
            hint=f"axon install file:{place.parent}",
        )
    parts = parts_of(place.name)
    for name in parts:
        if not (place.parent / name).is_file():
            raise RefusedError(
                f"{place.name}: the model's part {name} is missing beside it",
                field=name,
                expected=f"{len(parts)} parts in one folder",
                got="not all",
            )
    beside = [path.relative_to(place.parent).as_posix() for path in place.parent.glob("test_data_set_*/*.pb")]
    tests, notes = test_data(beside, place.name) if summary.format == "onnx" else ([], ())
    return (*parts, *summary.external_files, *tests), notes


def _names(root: Path) -> Iterator[str]:
    """Paths of files, links included, relative to ``root``; hidden ones and odd names are left out."""
    for parent, folders, files in os.walk(root):
        inside = Path(parent).relative_to(root)
        folders[:] = [name for name in folders if not name.startswith(".") and len(inside.parts) + 1 < _DEPTH]
        for name in files:
            path = (inside / name).as_posix()
            if normal_path(path) and not name.startswith("."):
                yield path


def _source_file(root: Path, path: str) -> SourceFile:
    real = _real(root, path)
    return SourceFile(path, real.stat().st_size, sha256=sha256_of(real))


def _real(root: Path, path: str) -> Path:
    """Where the bytes of ``path`` are, if they may be taken from there."""
    base = root.resolve()
    try:
        real = (root / path).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise RefusedError(f"{path}: a link that leads nowhere", field=path) from error
    blobs = base.parent.parent / "blobs" if base.parent.name == "snapshots" else None
    if not real.is_relative_to(base) and real.parent != blobs:
        raise RefusedError(
            f"{path}: a link that leads out of the folder, to {real}",
            field=path,
            expected=f"a file in {base}",
            got=str(real),
            hint=f"if it is meant, copy the folder with its links resolved: cp -rL {root} COPY",
        )
    if not real.is_file():
        raise RefusedError(f"{path}: not a regular file", field=path, expected="a regular file")
    return real
