"""What the sources that copy from this machine share: a copy that is hashed on its way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from mlos.axon.sources import Resolution, SourceFile
from mlos.axon.sources.digests import corrupt
from mlos.console import Console, Step

_BLOCK = 1 << 20


def copy_files(
    resolution: Resolution, locate: Callable[[str], Path], destination: Path, console: Console
) -> None:
    """Copy every file of ``resolution`` from where ``locate`` says it is.

    The bytes are copied, never linked: a later change of the original must not change a package.

    Raises:
        CorruptError: if a file has changed since it was resolved, or is not what was declared.
    """
    with console.step(f"copy {resolution.reference.name}", total=resolution.size, unit="B") as step:
        for file in resolution.files:
            target = destination / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(locate(file.path), file, target, step)


def _copy(origin: Path, file: SourceFile, target: Path, step: Step) -> None:
    digest, size = hashlib.sha256(), 0
    with origin.open("rb") as source, target.open("xb") as copy:
        while block := source.read(_BLOCK):
            copy.write(block)
            digest.update(block)
            size += len(block)
            step.advance(len(block))
    if size != file.size:
        target.unlink()
        raise corrupt(file, f"{file.size} bytes", f"{size} bytes")
    if digest.hexdigest() != file.sha256:
        target.unlink()
        raise corrupt(file, f"SHA-256 {file.sha256}", f"SHA-256 {digest.hexdigest()}")
