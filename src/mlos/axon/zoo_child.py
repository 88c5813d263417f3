"""The child of :mod:`mlos.axon.zoo`: reads a publisher's test data and writes it as a golden record.

A file belongs to the input or output that its tensor names; where it names none of the graph's, to the one at
the place that the file's own name gives, as ONNX's own test runners have it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper

from mlos.engines import check_inputs
from mlos.errors import CorruptError, InvalidInputError, RefusedError
from mlos.host.child import Emit, serve
from mlos.model import Artifact, InferenceRequest, TensorSpec
from mlos.parity import Case, GoldenRecord, Tolerance, tolerance_named, vacuity
from mlos.tasks import TENSORS


def main(request: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Read the folders ``request["sets"]``, write the folder ``output``; or say the ``reason`` not to."""
    artifact = Artifact.model_validate(request["artifact"])
    cases = tuple(_case(Path(folder), artifact) for folder in request["sets"])
    golden = GoldenRecord(cases, {"publisher": f"{len(cases)} sets of test data"})
    reason = _proves_nothing(golden, tolerance_named(request["tolerance"]))
    if reason is None:
        golden.save(Path(request["output"]))
    return {"reason": reason}


def _proves_nothing(golden: GoldenRecord, tolerance: Tolerance) -> str | None:
    if len(golden.cases) < 2:
        return "one set of test data alone does not tell a right model from a wrong one"
    reason = vacuity(golden, tolerance)
    return None if reason is None else f"the test data proves nothing: {reason}"


def _case(folder: Path, artifact: Artifact) -> Case:
    inputs = _tensors(folder, "input", artifact.inputs)
    outputs = _tensors(folder, "output", artifact.outputs)
    if not outputs:
        raise CorruptError(
            f"{folder.name} has no output", field=folder.name, expected="output_0.pb", got="none"
        )
    try:
        check_inputs(artifact.inputs, inputs)
    except InvalidInputError as error:
        raise CorruptError(
            f"{folder.name} does not fit the graph: {error.message}",
            field=folder.name,
            expected=error.expected,
            got=error.got,
        ) from error
    for name, tensor in (*inputs.items(), *outputs.items()):
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise CorruptError(
                f"{folder.name}: the tensor {name!r} holds NaN or infinity",
                field=folder.name,
                expected="finite numbers",
                got="NaN or infinity",
            )
    chosen = None if len(outputs) == len(artifact.outputs) else list(outputs)
    request = InferenceRequest(inputs=inputs, outputs=chosen)
    return Case(folder.name, request, TENSORS, inputs, outputs, result=None)


def _tensors(folder: Path, kind: str, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """The tensors of one set, by the names of the graph's inputs or outputs."""
    known = {spec.name: spec for spec in specs}
    found: dict[str, NDArray[Any]] = {}
    for path in sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: (len(path.name), path.name)):
        name, tensor = _read(path)
        place = int(path.stem.rpartition("_")[2])
        spec = known.get(name) or (specs[place] if place < len(specs) else None)
        if spec is None or spec.name in found:
            raise _damaged(
                path,
                f"it is of no {kind} of the graph that has not its tensor yet",
                f"one of {', '.join(known)}",
                repr(name or path.stem),
            )
        if tensor.dtype != spec.numpy_dtype:
            raise _damaged(
                path, f"it has other elements than '{spec.name}'", spec.dtype, str(tensor.dtype.name).upper()
            )
        found[spec.name] = tensor
    return found


def _read(path: Path) -> tuple[str, NDArray[Any]]:
    """The name and the elements of a ``TensorProto``, which must all be in its file."""
    proto = onnx.TensorProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise _damaged(path, "it cannot be decoded", "a TensorProto", str(error)[:200]) from error
    if proto.data_location == onnx.TensorProto.EXTERNAL or proto.external_data or proto.HasField("segment"):
        raise RefusedError(
            f"{_shown(path)}: its data lies elsewhere",
            field=_shown(path),
            expected="a tensor within its file",
            got="external data" if proto.external_data else "a segment of a tensor",
            hint="leave the folder's test data out",
        )
    try:
        tensor = numpy_helper.to_array(proto)
    except (ValueError, TypeError, KeyError, OverflowError, UnicodeDecodeError) as error:
        # What numpy and the library raise where type, shape and bytes do not go together.
        raise _damaged(
            path, "its type, shape and data do not agree", "a whole tensor", str(error)[:200]
        ) from error
    return proto.name, np.ascontiguousarray(tensor).reshape(tensor.shape)


def _damaged(path: Path, problem: str, expected: str, got: str) -> CorruptError:
    return CorruptError(
        f"{_shown(path)}: {problem}: expected {expected}, got {got}",
        field=_shown(path),
        expected=expected,
        got=got,
        hint="fetch the whole repository again, or leave its test data out",
    )


def _shown(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


if __name__ == "__main__":
    serve(main)
