"""What every task shares: the prepared request, and the checks of a request's own fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mlos.errors import InvalidInputError, PayloadTooLargeError, WorkerError
from mlos.model import InferenceRequest, Tensors
from mlos.settings import Settings

MAX_TEXT_BYTES: int = Settings.model_fields["max_text_bytes"].default

Subject: TypeAlias = Literal["text", "texts", "inputs"]


@dataclass(frozen=True)
class Prepared:
    """A request as the engine takes it.

    ``outputs`` are those the answer is made of; ``context`` is the task's own note to its ``postprocess``.
    """

    inputs: Tensors
    outputs: tuple[str, ...]
    context: Any = None


def subject(request: InferenceRequest) -> Subject:
    """Which of ``text``, ``texts`` and ``inputs`` the request holds.

    Raises:
        InvalidInputError: if it holds none or several, or ``outputs`` without ``inputs``.
    """
    held: list[Subject] = []
    if request.text is not None:
        held.append("text")
    if request.texts is not None:
        held.append("texts")
    if request.inputs is not None:
        held.append("inputs")
    if len(held) != 1:
        got = " and ".join(held) or "none of them"
        raise InvalidInputError(
            f"a request holds exactly one of text, texts and inputs; this one holds {got}",
            field=held[-1] if held else "text",
            expected="one of text, texts, inputs",
            got=got,
        )
    if request.outputs is not None and held[0] != "inputs":
        raise InvalidInputError(
            "outputs can be chosen only for inputs; a text is answered by its task",
            field="outputs",
            expected="no outputs",
            got=f"outputs with {held[0]}",
        )
    return held[0]


def texts_of(request: InferenceRequest, task: str, max_bytes: int) -> list[str]:
    """The request's texts, one or several. An empty text is a text.

    Raises:
        InvalidInputError: if it holds tensors, no text at all, or characters that UTF-8 cannot carry.
        PayloadTooLargeError: if all texts together are over ``max_bytes`` of UTF-8; tokenising takes time and
            memory in proportion.
    """
    kind = subject(request)
    if kind == "inputs":
        raise InvalidInputError(
            f"the task {task} takes text, not tensors", field="inputs", expected="text or texts", got="inputs"
        )
    texts = [request.text] if request.text is not None else request.texts or []
    if not texts:
        raise InvalidInputError(
            "texts holds no text", field="texts", expected="at least one text", got="an empty list"
        )
    try:
        size = sum(len(text.encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{kind} holds half a surrogate pair, which is no character",
            field=kind,
            expected="Unicode text",
            got=f"U+{ord(error.object[error.start]):04X}",
        ) from error
    if size > max_bytes:
        raise PayloadTooLargeError(
            f"{kind}: {size} bytes of text are over the limit of {max_bytes}",
            field=kind,
            expected=f"at most {max_bytes} bytes",
            got=f"{size} bytes",
            hint="split the text, or raise MLOS_MAX_TEXT_BYTES",
        )
    return texts


def check_parameters(
    request: InferenceRequest, known: Mapping[str, tuple[str, Callable[[Any], bool]]]
) -> dict[str, Any]:
    """The request's parameters, each of which must be known and hold. ``known``: name to (expected, test).

    Raises:
        InvalidInputError: naming the parameter.
    """
    for name, value in request.parameters.items():
        if name not in known:
            raise InvalidInputError(
                f"unknown parameter {name!r}",
                field=f"parameters.{name}",
                expected=", ".join(known) or "no parameters",
                got=repr(name),
            )
        expected, holds = known[name]
        if not holds(value):
            raise InvalidInputError(
                f"parameter {name!r}: expected {expected}, got {value!r:.100}",
                field=f"parameters.{name}",
                expected=expected,
                got=f"{value!r:.100}",
            )
    return dict(request.parameters)


def require_finite(name: str, output: NDArray[Any]) -> NDArray[Any]:
    """``output``, if every number in it is finite.

    Raises:
        WorkerError: naming the output.
    """
    if output.dtype.kind == "f" and not np.isfinite(output).all():
        raise WorkerError(
            f"the model answered NaN or infinity in '{name}'",
            field=name,
            expected="finite numbers",
            got="NaN or infinity",
            hint="the request's values may be far outside what the model was trained on",
        )
    return output
