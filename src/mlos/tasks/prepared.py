"""What every task shares: limits, the prepared request, and the checks of a request's own fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from mlos.engines import asked_of
from mlos.errors import InvalidInputError, PayloadTooLargeError, WorkerError
from mlos.model import InferenceRequest, Manifest, Tensors, TensorSpec
from mlos.settings import Settings

Field: TypeAlias = Literal[
    "text", "texts", "prompt", "messages", "image", "images", "audio", "audios", "inputs"
]
SUBJECTS: tuple[Field, ...] = get_args(Field)
"""The fields of a request that hold what is asked about."""
Subject: TypeAlias = Field | Literal["image, texts", "images, texts"]
"""Which of them a request has: one, or images with the texts to tell them apart by."""
_TOGETHER: Mapping[frozenset[str], Subject] = {
    frozenset({"image", "texts"}): "image, texts",
    frozenset({"images", "texts"}): "images, texts",
}


Known: TypeAlias = Mapping[str, tuple[str, Callable[[Any], bool]]]
"""Parameters that a task knows: name to what is expected of its value, in words and as a test."""


MOST_TEXTS = 16_384
"""Of one request: an empty text has no bytes, and is work all the same."""


class Limits(msgspec.Struct, frozen=True):
    """How large a request may be, by what its content costs; see the settings of the same names."""

    max_text_bytes: int = Settings.model_fields["max_text_bytes"].default
    max_image_pixels: int = Settings.model_fields["max_image_pixels"].default
    max_audio_seconds: float = Settings.model_fields["max_audio_seconds"].default


@dataclass(frozen=True)
class Padding:
    """How a row of tokens is made longer without another answer: a number for each input, at which end."""

    values: Mapping[str, int]
    left: bool


@dataclass(frozen=True)
class Prepared:
    """A request as the engine takes it.

    ``outputs`` are those the answer is made of; ``context`` is the task's own note to its ``postprocess``;
    ``padding`` is set where the second axis of every input counts tokens and may be made longer; ``tokens``
    counts those of the texts, where the task knows it before it computes.
    """

    inputs: Tensors
    outputs: tuple[str, ...]
    context: Any = None
    padding: Padding | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)


def inputs_of(manifest: Manifest, task: str) -> Sequence[TensorSpec]:
    """What the model takes to give the ``output`` that ``manifest.preprocessing[task]`` names.

    A model with a side for texts and one for images takes that side's alone; every other, all of its inputs.
    """
    output = manifest.preprocessing.get(task, {}).get("output")
    return asked_of(manifest.artifact, (), [] if output is None else [output]).inputs


def subject(request: InferenceRequest) -> Subject:
    """Which of the fields that hold what is asked about the request has.

    Raises:
        InvalidInputError: if it has none, or several that do not go together, or ``outputs`` without
            ``inputs``.
    """
    held = [name for name in SUBJECTS if getattr(request, name) is not None]
    kind = held[0] if len(held) == 1 else _TOGETHER.get(frozenset(held))
    if kind is None:
        got = " and ".join(held) or "none of them"
        known = ", ".join(SUBJECTS)
        raise InvalidInputError(
            f"a request holds exactly one of {known}, or images with texts; this one holds {got}",
            field=held[-1] if held else "text",
            expected=f"one of {known}",
            got=got,
        )
    if request.outputs is not None and kind != "inputs":
        raise InvalidInputError(
            f"outputs can be chosen only for inputs; {kind} is answered by its task",
            field="outputs",
            expected="no outputs",
            got=f"outputs with {kind}",
        )
    return kind


def subject_among(request: InferenceRequest, task: str, *taken: Subject) -> Subject:
    """Which field the request holds, if ``task`` takes it.

    Raises:
        InvalidInputError: as :func:`subject` does, or if the task takes only other fields.
    """
    kind = subject(request)
    if kind not in taken:
        expected = " or ".join(taken).replace(", ", " with ")
        raise InvalidInputError(
            f"the task {task} takes {expected}, not {kind.replace(', ', ' with ')}",
            field=kind.rpartition(", ")[2],
            expected=expected,
            got=kind,
        )
    return kind


def texts_of(
    request: InferenceRequest, task: str, max_bytes: int, taken: tuple[Subject, ...] = ("text", "texts")
) -> list[str]:
    """The request's texts, one or several, from whichever of the fields ``taken`` it has.

    An empty text is a text.

    Raises:
        InvalidInputError: if it holds something else, no text at all, or characters that UTF-8 cannot carry.
        PayloadTooLargeError: if there are more than :data:`MOST_TEXTS`, or all together are over ``max_bytes``
            of UTF-8; tokenising takes time and memory in proportion.
    """
    kind = subject_among(request, task, *taken)
    held = getattr(request, kind)
    texts: list[str] = held if kind == "texts" else [held]
    if not texts:
        raise InvalidInputError(
            "texts holds no text", field="texts", expected="at least one text", got="an empty list"
        )
    check_texts(texts, kind, max_bytes)
    return texts


def check_texts(texts: list[str], kind: str, max_bytes: int) -> None:
    """Check that the texts of the field ``kind`` are Unicode, not too many and not too long, all together.

    Raises:
        InvalidInputError: if one has characters that UTF-8 cannot carry.
        PayloadTooLargeError: if they are over :data:`MOST_TEXTS` or ``max_bytes``.
    """
    if len(texts) > MOST_TEXTS:
        raise PayloadTooLargeError(
            f"{kind}: {len(texts)} texts are over the limit of {MOST_TEXTS}",
            field=kind,
            expected=f"at most {MOST_TEXTS} texts",
            got=f"{len(texts)} texts",
            hint="send fewer texts at a time",
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


def check_parameters(request: InferenceRequest, known: Known) -> dict[str, Any]:
    """The request's parameters, each of which must be known and hold.

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


def is_whole(value: Any, least: int, most: int | None = None) -> bool:
    """Whether ``value`` is a whole number (no boolean) within bounds."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and value >= least and (most is None or value <= most)


def is_number(value: Any, least: float, most: float) -> bool:
    """Whether ``value`` is a number (no boolean, no NaN) within bounds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


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
