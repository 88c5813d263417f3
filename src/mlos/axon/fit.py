"""An ONNX repository's own graph, fitted to the tasks that its configuration names: the side without framework.

The work is done in a confined child; what it reports is checked like any other data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from mlos.axon.convert import default_requests, require_framework
from mlos.console import Console
from mlos.errors import CorruptError
from mlos.host.child import run_confined
from mlos.host.environment import usable_cores
from mlos.host.sandbox import Policy
from mlos.model import Artifact, FileRole
from mlos.model.manifest import normal_path

CHILD = "mlos.axon.convert.graph_child"
_TIMEOUT = 900.0  # seconds; the framework's import, and a dozen requests
_GIB = 1 << 30


class Fitted(BaseModel):
    """How a graph is packaged. ``files`` were written beside it, each with its role.

    ``reason`` says why no task fits it, so that it is served as tensors alone; None where one does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: Artifact
    tasks: tuple[str, ...] = ("tensors",)
    architecture: str | None = None
    preprocessing: dict[str, Any] = {}
    files: tuple[tuple[str, FileRole], ...] = ()
    notes: tuple[str, ...] = ()
    reason: str | None = None


def fit(source: Path, output: Path, artifact: Artifact, console: Console) -> Fitted:
    """Fit the graph ``artifact`` of the repository in ``source`` to tasks; their files go to ``output``.

    Raises:
        MissingExtraError: if the framework, which reads the configuration, is not installed.
        RefusedError: if the engine cannot open the graph, or it is of a kind that is refused.
    """
    require_framework("reading a model's configuration")
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    policy = Policy(
        read=(source,),
        write=(output,),
        memory_bytes=4 * size + 8 * _GIB,
        cpu_seconds=int(_TIMEOUT) * 2,
        file_bytes=_GIB,
    )
    with console.step("fit the graph to its tasks"):
        answer = run_confined(CHILD, order(source, output, artifact), policy, timeout=_TIMEOUT)
    try:
        fitted = Fitted.model_validate(answer)
    except ValidationError as error:
        raise CorruptError(f"the fitting's answer is malformed: {error.errors()[0]['msg']}") from error
    for path, _ in fitted.files:
        if not normal_path(path) or not (output / path).is_file():
            raise CorruptError(f"the fitting named {path!r} and did not write it", field=path)
    if fitted.artifact.path != artifact.path:
        raise CorruptError("the fitting answered for another graph", field="artifact.path")
    for note in fitted.notes:
        console.note(note)
    if fitted.reason is not None:
        console.warn(f"{artifact.path} is served as tensors alone: {fitted.reason}")
    return fitted


def order(source: Path, output: Path, artifact: Artifact) -> dict[str, Any]:
    """What the child is told."""
    return {
        "source": source.absolute(),
        "output": output.absolute(),
        "artifact": artifact.model_dump(mode="json"),
        "defaults": default_requests(),
        "threads": usable_cores(),
    }
