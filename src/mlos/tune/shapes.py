"""What a model is timed with: real tensors of its golden record, short, medium and long, alone and in batches.

Texts are stretched or cut to :data:`LENGTHS` tokens, up to what the model takes; everything else is timed in
the sizes of the record itself. A batch is :data:`BATCH` of the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.model import Manifest, Tensors
from mlos.parity import Case
from mlos.tasks import Prepared
from mlos.tasks.batching import batch_axis

LENGTHS = (16, 64, 256)
BATCH = 4
_LONGEST_BATCHED = 64
"""Longer texts fill the processor alone, and would take most of the time that a tuning takes."""
_MOST_SIZES = 3


@dataclass(frozen=True)
class Shape:
    """One thing that is timed: ``batch`` rows of ``length`` tokens, where it is texts."""

    name: str
    inputs: Tensors
    outputs: tuple[str, ...]
    batch: int
    length: int | None

    @property
    def single(self) -> str:
        """Name of the same thing alone."""
        return self.name.partition(" x ")[0]


def shapes_of(manifest: Manifest, cases: Mapping[str, tuple[Case, Prepared]]) -> tuple[Shape, ...]:
    """What to time the model of ``manifest`` with; ``cases`` are its golden requests, asked of their tasks."""
    if _is_text(manifest):
        case, prepared = next(iter(cases.values()))
        longest = _longest(manifest)
        lengths = [length for length in LENGTHS if length <= longest] or [longest]
        return tuple(
            Shape(
                _name(f"{length} tokens", rows),
                _texts(case, rows, length),
                _outputs(case, prepared),
                rows,
                length,
            )
            for length in lengths
            for rows in ((1, BATCH) if length <= _LONGEST_BATCHED else (1,))
        )
    found = []
    for name, (case, prepared) in _sizes(cases).items():
        outputs = _outputs(case, prepared)
        found.append(Shape(name, case.inputs, outputs, 1, None))
        if batch_axis(manifest.artifact) is not None and _rows(case) == 1:
            rows = {each: np.repeat(tensor, BATCH, axis=0) for each, tensor in case.inputs.items()}
            found.append(Shape(_name(name, BATCH), rows, outputs, BATCH, None))
    return tuple(found)


def _name(what: str, rows: int) -> str:
    return what if rows == 1 else f"{what} x {rows}"


def _is_text(manifest: Manifest) -> bool:
    artifact = manifest.artifact
    names = {spec.name for spec in artifact.inputs}
    return not artifact.parts and {"input_ids", "attention_mask"} <= names and _longest(manifest) > 0


def _longest(manifest: Manifest) -> int:
    """Most tokens that any of its tasks gives it."""
    return max((int(options.get("max_length", 0)) for options in manifest.preprocessing.values()), default=0)


def _outputs(case: Case, prepared: Prepared) -> tuple[str, ...]:
    """What the case's task asks the engine for; a task that runs it step by step names nothing."""
    return prepared.outputs or tuple(case.outputs)


def _texts(case: Case, rows: int, length: int) -> dict[str, NDArray[Any]]:
    """The first text of a case, stretched or cut: its tokens over and over."""
    valid = int(case.inputs["attention_mask"][0].sum())
    return {
        name: np.tile(np.resize(tensor[0, :valid], length), (rows, 1)) for name, tensor in case.inputs.items()
    }


def _rows(case: Case) -> int:
    return max((len(tensor) for tensor in case.inputs.values() if tensor.ndim), default=1)


def _sizes(cases: Mapping[str, tuple[Case, Prepared]]) -> dict[str, tuple[Case, Prepared]]:
    """The smallest, a middle and the largest of the record's requests, one of each shape."""
    seen: dict[Any, tuple[str, tuple[Case, Prepared]]] = {}
    for name, (case, prepared) in cases.items():
        key = tuple(sorted((each, tensor.shape) for each, tensor in case.inputs.items()))
        seen.setdefault(key, (name, (case, prepared)))
    ordered = sorted(seen.values(), key=lambda item: sum(t.nbytes for t in item[1][0].inputs.values()))
    places = sorted({0, len(ordered) // 2, len(ordered) - 1})[:_MOST_SIZES]
    return dict(ordered[place] for place in places)
