"""Tensors against the specification an artifact declares: every engine asks here, before and after it runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlos.errors import InvalidInputError, RefusedError, UsageError
from mlos.model import Artifact, Tensors, TensorSpec


def check_threads(threads: int) -> None:
    """Check that there is a thread to compute with.

    Raises:
        UsageError: if there is none.
    """
    if threads < 1:
        raise UsageError("an engine needs a thread", field="threads", expected=">= 1", got=str(threads))


def check_declared(artifact: Artifact, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Check that a file takes and gives the tensors, by name, that ``artifact`` declares.

    Raises:
        RefusedError: if it does not; names the file, expected and got.
    """
    for what, declared, found in (("takes", artifact.inputs, inputs), ("gives", artifact.outputs, outputs)):
        expected, got = sorted(spec.name for spec in declared), sorted(found)
        if expected != got:
            raise RefusedError(
                f"{artifact.path} {what} other tensors than its manifest declares",
                field=artifact.path,
                expected=", ".join(expected),
                got=", ".join(got),
            )


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


def check_answers(artifact: Artifact, inputs: Tensors, answers: Tensors) -> None:
    """Check that each answer has the rank and the lengths that ``artifact`` declares for these inputs.

    A library that cannot compute with some lengths, such as a text beyond the positions, need not say so.

    Raises:
        InvalidInputError: naming the output, the shape that was due and the one that came.
    """
    lengths = {
        axis: length
        for spec in artifact.inputs
        for axis, length in zip(spec.shape, inputs[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }
    for spec in artifact.outputs:
        if spec.name not in answers:
            continue
        due = [lengths.get(axis, axis) if isinstance(axis, str) else axis for axis in spec.shape]
        got = list(answers[spec.name].shape)
        if len(due) != len(got) or any(
            isinstance(axis, int) and axis != length for axis, length in zip(due, got, strict=True)
        ):
            raise InvalidInputError(
                f"the model cannot take these tensors: '{spec.name}' came out as {got} where {due} was due",
                field="inputs",
                expected=str(due),
                got=str(got),
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
