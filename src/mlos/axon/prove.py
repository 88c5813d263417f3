"""The gate between a conversion and a package: our own tasks and engine must answer as the framework did.

The work is done by a second confined child, one without the framework: what serves the model later is what is
proven here, and with nothing else at hand.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from mlos.console import Console
from mlos.errors import ParityError, WorkerError
from mlos.host.cgroup import usable_memory
from mlos.host.child import run_confined
from mlos.host.environment import usable_cores
from mlos.host.sandbox import Policy
from mlos.model import Manifest, ParityMeasure
from mlos.parity import require, tolerance_of

_CHILD = "mlos.axon.prove_child"
_OPENER = "mlos.axon.open_child"
_TIMEOUT = 1800.0  # seconds; a handful of requests, and the loading of the model
_GIB = 1 << 30
_MEASURES = TypeAdapter(tuple[ParityMeasure, ...])


def prove(folder: Path, draft: Manifest, tolerance: str, console: Console) -> tuple[ParityMeasure, ...]:
    """Hold the package that ``draft`` describes, its files in ``folder``, to its golden record.

    For each case of the record the package's own task must be the one that takes the request, make the
    framework's tensors of it, and make the framework's result of what the engine answers; the engine's outputs
    are held to the row ``tolerance``, or to that of a GGUF file's own precision. The measures that passed are
    returned, one per output; none where the draft has no golden record, since no framework answers for such a
    file.

    Raises:
        ParityError: naming the case, the place, what was expected and what came; or why the record is vacuous.
        CorruptError: if the golden record cannot be read.
        MlosError: if the engine or a task refuses the package, or the child fails.
    """
    if draft.golden is None:
        return ()
    row = tolerance_of(draft.artifact, tolerance)
    request: dict[str, Any] = {
        "folder": str(folder.absolute()),
        "manifest": draft.model_dump(mode="json"),
        "tolerance": row.name,
        "threads": usable_cores(),
    }
    with console.step("parity", unit="cases") as step:

        def show(event: dict[str, Any]) -> None:
            if "cases" in event:
                step.expect(float(event["cases"]))
            step.advance(float(event.get("answered", 0)))

        answer = run_confined(_CHILD, request, _policy(folder), timeout=_TIMEOUT, on_event=show)
    try:
        measures = _MEASURES.validate_python(answer.get("measures"))
    except ValidationError as error:
        raise WorkerError(f"the parity check's answer is malformed: {error.errors()[0]['msg']}") from error
    if not measures:
        raise ParityError("parity failed: nothing was compared")
    require(measures)
    return measures


def require_opening(folder: Path, draft: Manifest, console: Console) -> None:
    """Open the ONNX package that ``draft`` describes with its engine, once; for one that nothing is asked of.

    Raises:
        RefusedError: with the engine's reason, if it cannot: an operator or an operator set that it lacks.
        MlosError: if the child fails.
    """
    request = {"folder": str(folder.absolute()), "artifact": draft.artifact.model_dump(mode="json")}
    with console.step("open"):
        run_confined(_OPENER, request, _policy(folder), timeout=_TIMEOUT)


def _policy(folder: Path) -> Policy:
    return Policy(
        read=(folder,),
        # Weights twice (packed for the processor), every case's tensors in double precision, the libraries.
        memory_bytes=min(4 * _size(folder) + 4 * _GIB, usable_memory()),
        file_bytes=0,
        open_files=256,
    )


def _size(folder: Path) -> int:
    """Bytes of the files in ``folder``: forms on the way to the artifact are not among the draft's."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
