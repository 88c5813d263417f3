"""Tensor specifications: a name, an element type and a shape whose axes may be free."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from mlos.errors import InvalidInputError

Tensors: TypeAlias = Mapping[str, NDArray[Any]]
"""Named arrays, as an engine takes and gives them."""

DType: TypeAlias = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"
]
"""Element types under the names of the Open Inference Protocol V2."""

_EXACT = 2**53
"""Up to here each whole number has a double of its own (IEEE 754)."""

_NUMPY: dict[str, np.dtype[Any]] = {
    name: np.dtype(name.lower().replace("fp", "float") if name.startswith("FP") else name.lower())
    for name in get_args(DType)
}


class TensorSpec(BaseModel):
    """One input or output. An axis is a length, or the name of a free axis (equal names, equal lengths)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: DType
    shape: tuple[int | str, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The element type as numpy knows it."""
        return _NUMPY[self.dtype]

    def array(self, value: Any) -> NDArray[Any]:
        """``value`` (a nested list or an array) as an array of this element type and shape.

        Raises:
            InvalidInputError: naming this tensor, what was expected and what came, if the value is ragged, not
                numeric, out of the element type's range, or of another shape.
        """
        expected = f"{self.dtype} {list(self.shape)}"
        try:
            given = np.asarray(value)
        except (ValueError, TypeError, OverflowError) as error:
            raise self._wrong(expected, "a ragged or mixed list") from error
        if given.dtype.kind not in "biuf":
            raise self._wrong(expected, f"elements of type {given.dtype.name}")
        if len(given.shape) != len(self.shape) or any(
            isinstance(want, int) and want != got for want, got in zip(self.shape, given.shape, strict=True)
        ):
            raise self._wrong(expected, f"shape {list(given.shape)}")
        if given.dtype == self.numpy_dtype:
            return np.asarray(given, order="C")  # ascontiguousarray would give a scalar an axis
        if given.dtype.kind == "f" and not np.isfinite(given).all():
            raise self._wrong(expected, "NaN or infinity")
        if self.numpy_dtype.kind in "biu":
            if given.dtype.kind == "f" and given.size and not np.equal(np.mod(given, 1), 0).all():
                raise self._wrong(expected, "numbers with a fraction")
            if given.dtype.kind == "f" and given.size and np.abs(given).max() > _EXACT:
                raise self._wrong(expected, f"fractional numbers beyond {_EXACT}, where whole ones are lost")
            low, high = (0, 1) if self.dtype == "BOOL" else _range(self.numpy_dtype)
            if given.size and (given.min() < low or given.max() > high):
                raise self._wrong(expected, f"numbers outside {low} to {high}")
        with np.errstate(over="ignore"):
            cast = given.astype(self.numpy_dtype, order="C")
        if cast.dtype.kind == "f" and not np.isfinite(cast).all():
            raise self._wrong(expected, "numbers too large for the element type")
        return cast

    def _wrong(self, expected: str, got: str) -> InvalidInputError:
        return InvalidInputError(
            f"input tensor '{self.name}': expected {expected}, got {got}",
            field=f"inputs.{self.name}",
            expected=expected,
            got=got,
        )


def dtype_name(dtype: np.dtype[Any]) -> DType:
    """The V2 name of a numpy element type.

    Raises:
        InvalidInputError: for element types that have none (objects, strings, dates).
    """
    for name, known in _NUMPY.items():
        if known == dtype:
            return name  # type: ignore[return-value]  # the keys are get_args(DType)
    raise InvalidInputError(f"tensors of {dtype} cannot be exchanged: only numbers and booleans can")


def _range(dtype: np.dtype[Any]) -> tuple[int, int]:
    info = np.iinfo(dtype)
    return int(info.min), int(info.max)
