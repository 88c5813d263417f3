"""What a verified model file holds, in the same words for every format."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mlos.model.manifest import ModelFormat
from mlos.model.tensors import TensorSpec


@dataclass(frozen=True)
class Summary:
    """A model file that passed verification.

    ``tensors`` counts the stored tensors and ``parameters`` their elements; for ONNX these are the
    initializers, those of subgraphs included. ``element_types`` gives the elements per element type, named as
    the format names it. ``metadata`` is what the file says about itself: SafeTensors' ``__metadata__``, GGUF's
    key-value pairs, and for ONNX its versions, producer, operator domains and properties. Inputs, outputs, the
    opset of the default domain and the external data files (relative to the file's folder, sorted) are known
    for ONNX alone.
    """

    format: ModelFormat
    tensors: int
    parameters: int
    metadata: dict[str, Any]
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    external_files: tuple[str, ...] = ()
    opset: int | None = None
    element_types: dict[str, int] = field(default_factory=dict)
