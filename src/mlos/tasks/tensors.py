"""Tensors: named arrays in, named arrays out, for whoever prepares and reads them elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from mlos.engines import asked_of, check_inputs, check_outputs
from mlos.errors import InvalidInputError, PayloadTooLargeError
from mlos.model import Artifact, InferenceRequest, Manifest, Tensors
from mlos.tasks.prepared import Limits, Prepared, check_parameters, require_finite, subject_among
from mlos.tasks.task import SinglePass

MAX_VALUES = 1 << 25
"""Most numbers that a request is answered with: a hundred megabytes, and several times that as JSON."""


class RawTensors(SinglePass):
    """The model itself: ``inputs`` as nested lists or arrays, answered with ``{output name: nested list}``.

    Texts, and so their limit, do not concern it.
    """

    name: ClassVar[str] = "tensors"

    def __init__(self, folder: Path, manifest: Manifest, limits: Limits) -> None:
        self._artifact = manifest.artifact

    def accepts(self, request: InferenceRequest) -> bool:
        """Whether the request holds tensors."""
        return request.inputs is not None

    def preprocess(self, request: InferenceRequest) -> Prepared:
        """Each input as an array of its declared element type, shapes checked."""
        subject_among(request, self.name, "inputs")
        assert request.inputs is not None  # subject_among saw to it
        check_parameters(request, {})
        asked = asked_of(self._artifact, request.inputs, request.outputs)
        specs = {spec.name: spec for spec in asked.inputs}
        arrays = {
            name: specs[name].array(value) if name in specs else value for name, value in request.inputs.items()
        }
        check_inputs(asked.inputs, arrays)
        _check_numbers_of_tokens(arrays)
        wanted = request.outputs
        if wanted is None:
            wanted = [spec.name for spec in asked.outputs]
        if not wanted:
            raise InvalidInputError(
                "outputs names no output", field="outputs", expected="at least one name", got="an empty list"
            )
        check_outputs(asked.outputs, wanted)
        _check_size(asked, arrays, wanted)
        return Prepared(arrays, tuple(dict.fromkeys(wanted)))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """The outputs asked for, as nested lists."""
        return {name: require_finite(name, computed[name]).tolist() for name in prepared.outputs}


def _check_size(artifact: Artifact, arrays: Tensors, wanted: Sequence[str]) -> None:
    """Refuse what would be answered with more than :data:`MAX_VALUES`, as far as the inputs' axes tell."""
    lengths = {
        axis: length
        for spec in artifact.inputs
        for axis, length in zip(spec.shape, arrays[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }
    values = sum(
        math.prod(axis if isinstance(axis, int) else lengths.get(axis, 1) for axis in spec.shape)
        for spec in artifact.outputs
        if spec.name in wanted
    )
    if values > MAX_VALUES:
        raise PayloadTooLargeError(
            f"these inputs ask for {values} numbers in {', '.join(wanted)}",
            field="inputs",
            expected=f"at most {MAX_VALUES} numbers in all outputs",
            got=str(values),
            hint="send fewer rows at a time, or name the outputs that you need",
        )


def _check_numbers_of_tokens(arrays: Tensors) -> None:
    """Refuse negative numbers of tokens, which ONNX counts from the end of the vocabulary."""
    for name, array in arrays.items():
        if name.endswith("_ids") and array.dtype.kind == "i" and array.size and array.min() < 0:
            raise InvalidInputError(
                f"input tensor '{name}' holds the negative number {array.min()}",
                field=f"inputs.{name}",
                expected="numbers from 0",
                got=str(array.min()),
            )
