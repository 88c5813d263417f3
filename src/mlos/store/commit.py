"""How a package becomes visible: built out of sight, then put in place in steps that each leave a sound store.

Everything that takes long or needs room (hashing, waiting for the disk, writing the manifest) happens in the
staging area. What remains is done under the store's lock, and is renames and hard links only: blobs first, then
the package folder as a whole, last the reference. A reader, or a kill, between any two of these finds blobs
nobody needs yet, or a package nobody names yet; never half a package.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlos.errors import CorruptError, RefusedError
from mlos.model import FileEntry, Manifest
from mlos.store.disk import relink, sync_folder, write_new
from mlos.store.integrity import fingerprint, kind_of, leaves, open_regular
from mlos.store.layout import MANIFEST, Layout
from mlos.store.locks import locked
from mlos.store.package import Ref


@dataclass(frozen=True)
class Draft:
    """A whole package in a staging area, not visible yet. ``files`` maps each path to its SHA-256."""

    area: Path
    folder: Path
    files: dict[str, str]


def draft(area: Path, files: Path, manifest: Manifest) -> Draft:
    """Move what the manifest lists from ``files`` into a package folder in ``area``, hashing every file.

    Raises:
        CorruptError: a file is missing, or has another size or hash than its entry.
        RefusedError: the manifest's paths cannot be one folder's, or a file is a link or no regular file.
    """
    _check(manifest)
    folder = area / f"package-{secrets.token_hex(4)}"
    folder.mkdir()
    for entry in manifest.files:
        _take(entry, files, folder / entry.path)
    write_new(folder / MANIFEST, manifest.canonical(), 0o444)
    _sync_tree(folder)
    return Draft(
        area, folder, {MANIFEST: manifest.digest} | {file.path: file.sha256 for file in manifest.files}
    )


def publish(layout: Layout, package: Draft, ref: Ref) -> None:
    """Make a drafted package visible under ``ref``, repairing what is corrupt of it in the store already.

    An existing blob is used only after its hash was computed again; otherwise it is replaced, and so is every
    package's link to the old one. Processes that have the old file open keep it.
    """
    passing = package.area / "ref.json"
    passing.unlink(missing_ok=True)
    write_new(passing, ref.model_dump_json(indent=1).encode(), 0o644)
    wanted = set(package.files.values())
    seen: dict[str, _Seen] = {}
    while True:
        # Hashing takes long, so it is done before the lock is taken, and again for what changed meanwhile.
        for sha256 in wanted:
            blob = layout.blob(sha256)
            if sha256 not in seen or seen[sha256].identity != _identity(blob):
                identity = _identity(blob)
                seen[sha256] = _Seen(identity, identity is not None and fingerprint(blob) == sha256)
        with locked(layout.lock):
            if all(seen[sha256].identity == _identity(layout.blob(sha256)) for sha256 in wanted):
                _place_blobs(layout, package, {sha256 for sha256 in wanted if seen[sha256].sound})
                _place_folder(package.folder, layout.package(ref.digest))
                sync_folder(layout.packages)
                layout.lease(ref.digest).touch()
                with visible_change(layout):
                    passing.replace(layout.ref(ref.reference))
                return


@contextmanager
def visible_change(layout: Layout) -> Iterator[None]:
    """Around a change of ``refs/``: makes it durable, and gives the folder a time stamp it never had before."""
    before = layout.refs.stat().st_mtime_ns
    yield
    # Two changes within one tick of the file system's clock would else look like one.
    status = layout.refs.stat()
    os.utime(layout.refs, ns=(status.st_atime_ns, max(status.st_mtime_ns, before + 1)))
    sync_folder(layout.refs)


@dataclass(frozen=True)
class _Seen:
    """A blob when its hash was computed: which file it was, and whether it was sound."""

    identity: tuple[int, int, int] | None
    sound: bool


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check(manifest: Manifest) -> None:
    paths = {file.path for file in manifest.files}
    folders = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    if MANIFEST in paths or MANIFEST in folders:
        raise RefusedError(f"a packaged file may not be called {MANIFEST}", field="files", got=MANIFEST)
    if len(paths) != len(manifest.files) or paths & folders:
        raise RefusedError(
            f"manifest of {manifest.name} lists a path twice, or as a file and a folder",
            field="files",
            expected="paths that can stand in one folder",
            got=", ".join(sorted(paths & folders)) or "a path twice",
        )
    # A number like NaN can be written but not read again; such a package would be lost.
    if Manifest.parse(manifest.canonical(), f"manifest of {manifest.name}") != manifest:
        raise RefusedError(f"manifest of {manifest.name} does not survive being written and read")


def _take(entry: FileEntry, files: Path, target: Path) -> None:
    """Prove that a staged file is what its entry says; move it into the draft, read-only and on the disk."""
    source, kind = files / entry.path, _kind_of(files, entry.path)
    if kind is None:
        raise CorruptError(
            f"file {entry.path} is missing", field=entry.path, expected=f"{entry.size} bytes", got="no file"
        )
    if kind != "a file":
        raise _not_plain(entry, kind)
    with open_regular(source) as stream:
        status = os.fstat(stream.fileno())
        if status.st_nlink != 1:
            # Somebody else's name for it would let them change a blob.
            raise _not_plain(entry, f"a file with {status.st_nlink} hard links")
        if status.st_size != entry.size:
            raise CorruptError(
                f"file {entry.path} has {status.st_size} bytes, not {entry.size}",
                field=entry.path,
                expected=f"{entry.size} bytes",
                got=f"{status.st_size} bytes",
            )
        got = hashlib.file_digest(stream, "sha256").hexdigest()
        if got != entry.sha256:
            raise CorruptError(
                f"file {entry.path} has SHA-256 {got}, not {entry.sha256}",
                field=entry.path,
                expected=entry.sha256,
                got=got,
            )
        os.fchmod(stream.fileno(), 0o444)
        os.fsync(stream.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    source.rename(target)
    if target.lstat().st_ino != status.st_ino:
        raise _not_plain(entry, "another file than the one that was hashed")


def _kind_of(files: Path, path: str) -> str | None:
    """What stands at ``path`` below ``files``, no link followed on the way; nothing, or in words what."""
    place, kind = files, None
    for segment in PurePosixPath(path).parts:
        place /= segment
        try:
            kind = kind_of(place.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if kind == "a symbolic link":
            break
    return kind


def _not_plain(entry: FileEntry, got: str) -> RefusedError:
    return RefusedError(
        f"file {entry.path} is {got}",
        field=entry.path,
        expected="a regular file of its own",
        got=got,
        hint="copy the file instead of linking it",
    )


def _place_blobs(layout: Layout, package: Draft, sound: set[str]) -> None:
    """Let draft and blobs share files; a blob that is not sound is replaced by the draft's file."""
    ours = {sha256: package.folder / path for path, sha256 in package.files.items() if sha256 not in sound}
    corrupt = {
        identity[0]: ours[sha256] for sha256 in ours if (identity := _identity(layout.blob(sha256))) is not None
    }
    if corrupt:
        # Before the blobs: as long as one is corrupt, the next commit knows that there is something to heal.
        _heal(layout, package.area, corrupt)
    for sha256, file in ours.items():
        blob = layout.blob(sha256)
        if blob.is_dir() and not blob.is_symlink():
            shutil.rmtree(blob)
        relink(file, blob, package.area)
    for path, sha256 in package.files.items():
        if ours.get(sha256) != package.folder / path:
            relink(layout.blob(sha256), package.folder / path, package.area)
    sync_folder(layout.blobs)
    _sync_tree(package.folder)


def _heal(layout: Layout, area: Path, corrupt: dict[int, Path]) -> None:
    """Let every package that links to a corrupt file, known by its inode, link to the sound one instead."""
    for folder in layout.packages.iterdir():
        healed = [(path, corrupt.get((folder / path).lstat().st_ino)) for path in leaves(folder)]
        for path, sound in healed:
            if sound is not None:
                relink(sound, folder / path, area)
                sync_folder((folder / path).parent)


def _place_folder(built: Path, final: Path) -> None:
    """Move a built package folder into place; where it stands already, make it equal, file by file."""
    if final.is_symlink() or (final.exists() and not final.is_dir()):
        final.unlink()
    if not final.exists():
        built.rename(final)
        return
    wanted = leaves(built)
    for path, kind in leaves(final).items():
        if path not in wanted:
            if kind == "an empty folder":
                (final / path).rmdir()
            else:
                (final / path).unlink()
            _prune((final / path).parent, final)
    for path in wanted:
        source, target = built / path, final / path
        if not os.path.lexists(target) or target.lstat().st_ino != source.lstat().st_ino:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
    _sync_tree(final)


def _prune(folder: Path, root: Path) -> None:
    while folder != root and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _sync_tree(folder: Path) -> None:
    for parent, _, _ in os.walk(folder):
        sync_folder(Path(parent))
