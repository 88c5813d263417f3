"""The two hashes that files are known by: SHA-256, and git's blob hash where a hub declares nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlos.axon.sources import SourceFile
from mlos.errors import CorruptError


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_blob_sha1_of(path: Path) -> str:
    """Git's name for a file's content: SHA-1 over ``blob SIZE``, a NUL and the bytes.

    SHA-1 is no longer collision-proof; it is what git hubs declare for files outside large-file storage.
    """
    start = f"blob {path.stat().st_size}\0".encode()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.sha1(start, usedforsecurity=False)).hexdigest()


def difference(path: Path, file: SourceFile) -> CorruptError | None:
    """The error to raise if the bytes at ``path`` are not what was declared for ``file``, else None."""
    size = path.stat().st_size
    if size != file.size:
        return corrupt(file, f"{file.size} bytes", f"{size} bytes")
    if file.sha256 is not None:
        kind, wanted, got = "SHA-256", file.sha256, sha256_of(path)
    else:
        kind, wanted, got = "git blob SHA-1", file.git_sha1 or "a declared hash", git_blob_sha1_of(path)
    return None if got == wanted else corrupt(file, f"{kind} {wanted}", f"{kind} {got}")


def corrupt(file: SourceFile, wanted: str, got: str) -> CorruptError:
    """The error for a file that is not what was promised."""
    return CorruptError(
        f"{file.path}: wanted {wanted}, got {got}",
        field=file.path,
        expected=wanted,
        got=got,
        hint="try again; if it stays wrong, the place it comes from, or something between, changes it",
    )
