"""A gRPC inference request as the protocol's call, and an answered call as the response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.core.grpc.messages import Messages
from mlos.core.tensors import BYTES, check_form, from_raw, strings_from_raw, wrong
from mlos.core.v2 import Call, Given
from mlos.core.worker_protocol import Tensor, Wanted
from mlos.errors import InvalidInputError
from mlos.model.tensors import DType, TensorSpec

_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Where a typed input has its elements; halves of floats come as raw bytes alone."""


def call_of(request: Any) -> Call:
    """What a ``ModelInferRequest`` asks; its answer is always raw bytes.

    Raises:
        InvalidInputError: naming the input or output that is not what it should be.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidInputError(
            f"raw_input_contents holds {len(raw)} tensors for {len(request.inputs)} inputs",
            field="raw_input_contents",
            expected=f"{len(request.inputs)}, one for each input, or none",
            got=str(len(raw)),
        )
    given = [_given(tensor, raw[number] if raw else None) for number, tensor in enumerate(request.inputs)]
    wanted = [_wanted(output) for output in request.outputs] or None
    return Call(given, wanted, parameters_of(request.parameters), binary=True)


def parameters_of(given: Any) -> dict[str, Any]:
    """A map of ``InferParameter`` as plain values; one that holds nothing is left out."""
    chosen = {name: value.WhichOneof("parameter_choice") for name, value in given.items()}
    return {name: getattr(given[name], choice) for name, choice in chosen.items() if choice is not None}


def response_of(messages: Messages, head: dict[str, str], tensors: Sequence[Tensor]) -> Any:
    """The ``ModelInferResponse`` with these tensors, all of them arrays."""
    response = messages["inference.ModelInferResponse"](**head)
    for tensor in tensors:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(tensor.data.tobytes())
    return response


def _given(tensor: Any, raw: bytes | None) -> Given:
    name, datatype, shape = tensor.name, tensor.datatype, list(tensor.shape)
    count = check_form(name, datatype, shape)
    parameters = parameters_of(tensor.parameters)
    if raw is not None and parameters.get("binary_data_size") == len(raw):
        del parameters["binary_data_size"]  # KServe's client says over gRPC too what REST alone has to know
    if parameters:
        parameter = next(iter(parameters))[:100]
        raise InvalidInputError(
            f"input tensor '{name[:100]}': parameter {parameter!r} is unknown",
            field=f"inputs.{name[:100]}.parameters.{parameter}",
            expected="no parameters",
            got=repr(parameter),
        )
    if raw is not None:
        if tensor.HasField("contents"):
            raise wrong(name, "either contents or raw_input_contents", "both")
        if datatype == BYTES:
            return Given(name, datatype, shape, strings_from_raw(name, shape, raw))
        return Given(name, datatype, shape, from_raw(name, datatype, shape, raw))
    held = _CONTENTS.get(datatype)
    if held is None:
        raise wrong(name, f"{datatype} in raw_input_contents", "contents")
    elements = getattr(tensor.contents, held)
    if len(elements) != count:
        raise wrong(name, f"{count} elements in {held} for shape {shape}", f"{len(elements)}")
    if datatype == BYTES:
        return Given(name, datatype, shape, list(elements))
    return Given(name, datatype, shape, _typed(name, datatype, elements))


def _typed(name: str, datatype: DType, elements: Any) -> NDArray[Any]:
    dtype = TensorSpec(name=name, dtype=datatype, shape=()).numpy_dtype
    try:
        return np.array(elements, dtype)
    except OverflowError as error:
        raise wrong(name, f"elements of {datatype}", "numbers outside its range") from error


def _wanted(output: Any) -> Wanted:
    parameters = parameters_of(output.parameters)
    classes = parameters.pop("classification", 0)
    parameters.pop("binary_data", None)  # every answer here is
    if parameters or isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        name = next(iter(parameters), "classification")[:100]
        raise InvalidInputError(
            f"output {output.name[:100]!r}: parameter {name!r} is unknown, or no such number",
            field=f"outputs.{output.name[:100]}.parameters.{name}",
            expected="classification, a whole number from 0",
            got=repr(name),
        )
    return Wanted(output.name, binary=True, classes=classes)
