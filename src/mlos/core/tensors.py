"""Tensors of the Open Inference Protocol as arrays and back: of raw bytes, of JSON, and as classes.

Formats: https://github.com/kserve/open-inference-protocol and the binary tensor data and classification
extensions beside it. Raw elements are little-endian and in row-major order; a BYTES element has its length
before it, in four bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlos.core.worker_protocol import Ask, Tensor, Wanted
from mlos.errors import InvalidInputError
from mlos.model import DType, InferenceRequest, Tensors, TensorSpec
from mlos.model.tensors import dtype_name
from mlos.tasks.prepared import require_finite

BFLOAT, BYTES = "BF16", "BYTES"
"""Element types of the protocol that no engine has: half a float, and a string."""
DATATYPES = (*get_args(DType), BFLOAT, BYTES)
MAX_AXES = 32
MOST_BESIDE_NONE = 1 << 22
"""An axis of none makes a tensor of no bytes: so many elements may its other axes make."""
_LENGTH = struct.Struct("<I")
_DTYPES = {
    name: TensorSpec(name=name, dtype=name, shape=()).numpy_dtype.newbyteorder("<") for name in get_args(DType)
} | {BFLOAT: np.dtype("<u2")}


def check_form(name: str, datatype: str, shape: Sequence[int]) -> int:
    """How many elements a tensor of this element type and shape has.

    Raises:
        InvalidInputError: if there is no such type or shape.
    """
    if datatype not in DATATYPES:
        raise wrong(name, ", ".join(DATATYPES), f"the datatype {datatype[:100]!r}")
    if len(shape) > MAX_AXES or any(axis < 0 for axis in shape):
        raise wrong(name, f"a shape of at most {MAX_AXES} axes from 0", f"shape {list(shape)!s:.200}")
    elements = math.prod(shape)
    # An engine makes tensors of its own by each axis; no body is too large for an empty one of any shape.
    if not elements and math.prod(filter(None, shape)) > MOST_BESIDE_NONE:
        expected = f"axes beside the empty ones of at most {MOST_BESIDE_NONE} elements"
        raise wrong(name, expected, f"shape {list(shape)!s:.200}")
    return elements


def from_raw(name: str, datatype: str, shape: Sequence[int], data: memoryview | bytes) -> NDArray[Any]:
    """The raw bytes of a tensor of numbers as an array of one axis, which is a view of them.

    Raises:
        InvalidInputError: if there is no such type or shape, or they are more or fewer than it takes.
    """
    dtype = _DTYPES[datatype]
    wanted = check_form(name, datatype, shape) * dtype.itemsize
    if len(data) != wanted:
        raise wrong(name, f"{wanted} bytes for {datatype} {list(shape)}", f"{len(data)} bytes")
    return np.frombuffer(data, dtype) if wanted else np.empty(0, dtype)


def strings_from_raw(name: str, shape: Sequence[int], data: memoryview | bytes) -> list[bytes]:
    """The elements of a tensor of BYTES.

    Raises:
        InvalidInputError: if they are more or fewer than ``shape`` has, or run over the end.
    """
    count, at = check_form(name, BYTES, shape), 0
    found: list[bytes] = []
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise wrong(name, f"{length} bytes of element {len(found)}", f"{len(data) - at} bytes")
        found.append(bytes(data[at : at + length]))
        at += length
    if at != len(data) or len(found) != count:
        raise wrong(name, f"{count} elements with their lengths", f"{len(found)} elements in {len(data)} bytes")
    return found


def strings_to_raw(elements: Sequence[bytes]) -> NDArray[np.uint8]:
    """The raw bytes of a tensor of BYTES."""
    joined = b"".join(part for each in elements for part in (_LENGTH.pack(len(each)), each))
    return np.frombuffer(joined, np.uint8)


def request_of(ask: Ask) -> InferenceRequest:
    """The request that a task takes: where it came with tensors, its ``inputs`` are arrays.

    Raises:
        InvalidInputError: naming the tensor whose JSON is no list of its elements.
    """
    if ask.tensors is None:
        return ask.request
    inputs = {tensor.name: _array(tensor) for tensor in ask.tensors}
    return msgspec.structs.replace(ask.request, inputs=inputs)


def answered(
    ask: Ask, outputs: Sequence[str], computed: Tensors, labels: Mapping[int, Sequence[str]]
) -> list[Tensor]:
    """The ``outputs`` of an ask in the forms that it wants them in.

    ``labels`` are the model's classes by how many there are.

    Raises:
        WorkerError: if one that is to be JSON holds NaN or infinity, for which JSON has no word.
    """
    wanted = {each.name: each for each in ask.wanted}
    return [_written(wanted.get(name, Wanted(name, ask.binary)), computed[name], labels) for name in outputs]


def _array(tensor: Tensor) -> NDArray[Any]:
    """A tensor of numbers as an array of its shape; BF16, the upper half of FP32, becomes that."""
    data = tensor.data
    if not isinstance(data, np.ndarray):
        data = _from_json(tensor)
    elif tensor.datatype == BFLOAT:
        data = (data.astype(np.uint32) << 16).view(np.float32)
    elif tensor.datatype == "BOOL" and data.size and data.view(np.uint8).max() > 1:
        raise wrong(tensor.name, "BOOL of bytes that are 0 or 1", "other bytes")
    return np.asarray(data).reshape(tensor.shape)


def _from_json(tensor: Tensor) -> NDArray[Any]:
    try:
        nested = np.asarray(msgspec.json.decode(tensor.data))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # msgspec's own are ValueErrors
        raise wrong(tensor.name, f"a list of {tensor.datatype}", "a ragged or mixed list") from error
    flat = nested.reshape(-1)
    if nested.ndim > 1 and list(nested.shape) != tensor.shape:
        raise wrong(tensor.name, f"a flat list, or one of shape {tensor.shape}", f"shape {list(nested.shape)}")
    if nested.ndim == 0 or flat.size != math.prod(tensor.shape):
        raise wrong(tensor.name, f"{math.prod(tensor.shape)} elements for shape {tensor.shape}", f"{flat.size}")
    dtype: Any = "FP32" if tensor.datatype == BFLOAT else tensor.datatype
    if not flat.size:  # an empty list has no element type of its own
        return np.empty(0, TensorSpec(name=tensor.name, dtype=dtype, shape=()).numpy_dtype)
    return TensorSpec(name=tensor.name, dtype=dtype, shape=("elements",)).array(flat)


def _written(wanted: Wanted, output: NDArray[Any], labels: Mapping[int, Sequence[str]]) -> Tensor:
    if wanted.classes:
        return _classes(wanted, require_finite(wanted.name, output), labels)
    name, shape = _name_of(output.dtype), list(output.shape)
    flat = np.ascontiguousarray(output).reshape(-1)
    if wanted.binary:
        return Tensor(wanted.name, name, shape, flat)
    text = msgspec.json.encode(require_finite(wanted.name, flat).tolist())
    return Tensor(wanted.name, name, shape, text)


def _classes(wanted: Wanted, output: NDArray[Any], labels: Mapping[int, Sequence[str]]) -> Tensor:
    """The largest values of each row as strings ``value:place`` or ``value:place:label``, largest first."""
    rows = output.reshape(len(output), -1) if output.ndim > 1 and len(output) else output.reshape(1, -1)
    names = labels.get(rows.shape[1], ())
    best = np.argsort(-rows.astype(np.float64), axis=1, kind="stable")[:, : wanted.classes]
    texts = [
        f"{float(row[place]):f}:{place}" + (f":{names[place]}" if names else "")
        for row, places in zip(rows, best.tolist(), strict=True)
        for place in places
    ]
    shape = [*output.shape[:1], best.shape[1]] if output.ndim > 1 else [best.shape[1]]
    raw = strings_to_raw([text.encode() for text in texts])
    return Tensor(wanted.name, BYTES, shape, raw if wanted.binary else msgspec.json.encode(texts))


def _name_of(dtype: np.dtype[Any]) -> str:
    return str(dtype_name(dtype.newbyteorder("=")))


def wrong(name: str, expected: str, got: str) -> InvalidInputError:
    """The error of an input tensor that is not what it should be."""
    return InvalidInputError(
        f"input tensor '{name[:100]}': expected {expected}, got {got}",
        field=f"inputs.{name[:100]}",
        expected=expected,
        got=got,
    )
