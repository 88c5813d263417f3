"""Tensors: named arrays in, named arrays out, for whoever prepares and reads them elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mlos.engines import check_inputs, check_outputs
from mlos.errors import InvalidInputError
from mlos.model import InferenceRequest, Manifest, Tensors
from mlos.tasks.prepared import Limits, Prepared, check_parameters, require_finite, subject_among
from mlos.tasks.task import SinglePass


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
        specs = {spec.name: spec for spec in self._artifact.inputs}
        arrays = {
            name: specs[name].array(value) if name in specs else value for name, value in request.inputs.items()
        }
        check_inputs(self._artifact.inputs, arrays)
        wanted = request.outputs
        if wanted is None:
            return Prepared(arrays, tuple(spec.name for spec in self._artifact.outputs))
        if not wanted:
            raise InvalidInputError(
                "outputs names no output", field="outputs", expected="at least one name", got="an empty list"
            )
        check_outputs(self._artifact.outputs, wanted)
        return Prepared(arrays, tuple(dict.fromkeys(wanted)))

    def postprocess(self, prepared: Prepared, computed: Tensors) -> Any:
        """The outputs asked for, as nested lists."""
        return {name: require_finite(name, computed[name]).tolist() for name in prepared.outputs}
