"""Whether a package folder holds what its manifest says, byte for byte, and nothing else."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal, TypeAlias

from mlos.errors import CorruptError
from mlos.model import Manifest
from mlos.store.layout import MANIFEST

_PIECE = 8 << 20
"""Bytes that are hashed at once: between two pieces a thread needs the interpreter, which others may have."""

Problem: TypeAlias = Literal["changed", "missing", "added"]


@dataclass(frozen=True)
class Fault:
    """One difference. ``path`` is relative to the package folder, or to the store for what lies outside it.

    ``expected`` and ``got`` are SHA-256 in hexadecimal, or words where a digest has no meaning. A renamed file
    is one missing and one added.
    """

    path: str
    problem: Problem
    expected: str | None
    got: str | None


def examine(folder: Path, manifest: Manifest, digest: str) -> tuple[Fault, ...]:
    """Hash every file below ``folder`` and compare with ``manifest``, whose own file must have ``digest``.

    Reads nothing outside ``folder``, so a worker confined to it can call this.
    """
    wanted = {MANIFEST: digest} | {file.path: file.sha256 for file in manifest.files}
    present = leaves(folder)
    faults: list[Fault] = []
    for path, sha256 in wanted.items():
        if path not in present:
            faults.append(Fault(path, "missing", sha256, None))
        elif (got := fingerprint(folder / path)) != sha256:
            faults.append(Fault(path, "changed", sha256, got))
    faults += [
        Fault(_printable(path), "added", None, kind) for path, kind in present.items() if path not in wanted
    ]
    return tuple(faults)


def read_manifest(folder: Path, digest: str) -> Manifest:
    """The manifest of the package in ``folder``, proven to be the one with ``digest``.

    Raises:
        CorruptError: if it is missing or has another digest.
        RefusedError: if it is of a schema this program cannot read.
    """
    origin = f"{MANIFEST} of package {digest[:12]}"
    try:
        with open_regular(folder / MANIFEST) as stream:
            data = stream.read()
    except OSError as error:
        raise CorruptError(
            f"{origin} cannot be read: {error.strerror}", field=MANIFEST, expected=digest, got=error.strerror
        ) from error
    got = hashlib.sha256(data).hexdigest()
    if got != digest:
        raise CorruptError(f"{origin} has changed", field=MANIFEST, expected=digest, got=got)
    return Manifest.parse(data, origin)


def fingerprint(path: Path) -> str:
    """SHA-256 of a regular file in hexadecimal, or in words what kept it from being computed."""
    try:
        with open_regular(path) as stream:
            digest = hashlib.sha256()
            piece = memoryview(bytearray(min(os.fstat(stream.fileno()).st_size + 1, _PIECE)))
            while count := stream.readinto(piece):
                digest.update(piece[:count])
            return digest.hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def open_regular(path: Path) -> FileIO:
    """Open a regular file for reading; a symbolic link, device or pipe is an :class:`OSError`, at once."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file", str(path))
    return open(descriptor, "rb", buffering=0)  # noqa: PTH123  (a descriptor has no path)


def leaves(folder: Path) -> dict[str, str]:
    """What is below ``folder``, by relative POSIX path: files, links and empty folders, and which of these.

    Links are not followed; a folder that does not exist has no leaves.
    """
    found: dict[str, str] = {}
    if not folder.is_dir():
        return found
    for parent, folders, files in os.walk(folder, onerror=_give_up):
        base = Path(parent)
        for name in (*folders, *files):
            try:
                mode = (base / name).lstat().st_mode
            except FileNotFoundError:
                continue  # removed since the folder was read: no leaf, so what wants it finds it missing
            if not stat.S_ISDIR(mode):
                found[(base / name).relative_to(folder).as_posix()] = kind_of(mode)
        if not folders and not files and base != folder:
            found[base.relative_to(folder).as_posix()] = "an empty folder"
    return found


def kind_of(mode: int) -> str:
    """What a file of this mode is, in words."""
    for is_it, words in (
        (stat.S_ISREG, "a file"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISDIR, "a folder"),
    ):
        if is_it(mode):
            return words
    return "a special file"


def _give_up(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
