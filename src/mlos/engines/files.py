"""Which file an engine may open: one of the package's own, and nothing else."""

from __future__ import annotations

from pathlib import Path

from mlos.errors import RefusedError
from mlos.model import Artifact


def file_of(folder: Path, artifact: Artifact) -> Path:
    """The file of ``artifact`` in the package's ``folder``.

    Raises:
        RefusedError: if the artifact has no file of its own, or it lies outside ``folder`` or is not there.
    """
    if artifact.path is None:
        raise RefusedError("a model of several graphs has no single file to open", field="artifact.path")
    path = (folder / artifact.path).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RefusedError(f"the model file lies outside its package: {artifact.path!r}", field="artifact.path")
    if not path.is_file():
        raise RefusedError(f"the package has no file {artifact.path!r}", field="artifact.path")
    return path
