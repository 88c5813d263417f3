"""Tensors against the specification an artifact declares: every engine asks here before it computes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlos.errors import InvalidInputError
from mlos.model import Tensors, TensorSpec


def check_inputs(specs: Sequence[TensorSpec], inputs: Tensors) -> None:
    """Check names, element types, ranks and lengths; free axes of one name must have one length.

    Raises:
        InvalidInputError: naming the tensor, what was expected and what came.
    """
    _check_names(specs, inputs)
    lengths: dict[str, tuple[int, str]] = {}
    for spec in specs:
        tensor = inputs[spec.name]
        expected, got = f"{spec.dtype} {list(spec.shape)}", f"{tensor.dtype.name} {list(tensor.shape)}"
        if tensor.dtype != spec.numpy_dtype or tensor.ndim != len(spec.shape):
            raise _wrong(spec.name, expected, got)
        for axis, length in zip(spec.shape, tensor.shape, strict=True):
            if isinstance(axis, int):
                if axis != length:
                    raise _wrong(spec.name, expected, got)
                continue
            known, owner = lengths.setdefault(axis, (length, spec.name))
            if known != length:
                raise _wrong(spec.name, f"{axis} = {known} as in '{owner}'", f"{axis} = {length}")


def check_outputs(specs: Sequence[TensorSpec], wanted: Iterable[str]) -> None:
    """Check that every output asked for exists.

    Raises:
        InvalidInputError: naming the first that does not, and those that do.
    """
    names = [spec.name for spec in specs]
    for name in wanted:
        if name not in names:
            raise InvalidInputError(
                f"the model has no output {name!r}",
                field="outputs",
                expected=", ".join(names),
                got=repr(name),
            )


def _check_names(specs: Sequence[TensorSpec], inputs: Tensors) -> None:
    names = [spec.name for spec in specs]
    expected, got = ", ".join(names), ", ".join(inputs) or "none"
    for name in names:
        if name not in inputs:
            raise InvalidInputError(
                f"input tensor '{name}' is missing", field=f"inputs.{name}", expected=expected, got=got
            )
    for name in inputs:
        if name not in names:
            raise InvalidInputError(
                f"the model has no input tensor {name!r}", field=f"inputs.{name}", expected=expected, got=got
            )


def _wrong(name: str, expected: str, got: str) -> InvalidInputError:
    return InvalidInputError(
        f"input tensor '{name}': expected {expected}, got {got}",
        field=f"inputs.{name}",
        expected=expected,
        got=got,
    )
