"""Several requests computed as one: which may be, how they are put together, and taken apart again.

Requests go together that ask the same outputs of tensors of equal shapes, one row after another along the batch
axis. Texts may differ in length too: the shorter are padded as their tokenizer pads, which the attention mask
hides from the model; what it answers at padding is cut off again. No request sees another's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.model import Artifact, Tensors
from mlos.tasks.prepared import Prepared

MOST_TOKENS = 2048
"""Of a batch of texts, padding included: what a model needs for its activations grows with them."""
MOST_PADDING = 0.25
"""Share of a batch of texts that may be padding."""
_BATCH = "batch"


def batch_axis(artifact: Artifact) -> str | None:
    """Name of the axis along which requests may be put together: the first of every tensor; None without one.

    Converted models call it ``batch``. What the first axis of any other file means is not known.
    """
    if artifact.parts:
        return None
    specs = (*artifact.inputs, *artifact.outputs)
    return _BATCH if specs and all(spec.shape and spec.shape[0] == _BATCH for spec in specs) else None


@dataclass(frozen=True)
class Member:
    """A prepared request that may be computed with others; ``number`` tells it from them."""

    number: int
    prepared: Prepared

    @property
    def rows(self) -> int:
        """How many rows of a batch it takes."""
        return len(next(iter(self.prepared.inputs.values())))

    @property
    def length(self) -> int:
        """Tokens of its longest text, where it is texts."""
        return next(iter(self.prepared.inputs.values())).shape[1] if self.prepared.padding else 0

    @property
    def kind(self) -> tuple[Any, ...]:
        """What has to be equal for two requests to be computed together."""
        inputs = self.prepared.inputs
        ignored = 2 if self.prepared.padding else 1
        shapes = tuple(
            (name, str(tensor.dtype), tensor.shape[ignored:]) for name, tensor in sorted(inputs.items())
        )
        return self.prepared.outputs, bool(self.prepared.padding), shapes


def grouped(members: Sequence[Member], most: int, longest: int | None) -> list[list[Member]]:
    """Which of ``members`` to compute together: at most ``most`` requests, texts of like lengths.

    A text longer than ``longest`` tokens, from which on it does not pay, goes alone. The groups stand in the
    order of their first members.
    """
    kinds: dict[tuple[Any, ...], list[Member]] = {}
    groups: list[list[Member]] = []
    for member in members:
        if longest is not None and member.length > longest:
            groups.append([member])
        else:
            kinds.setdefault(member.kind, []).append(member)
    for alike in kinds.values():
        group: list[Member] = []
        for member in sorted(alike, key=lambda member: member.length):
            if group and not _fits([*group, member], most):
                groups.append(group)
                group = []
            group.append(member)
        groups.append(group)
    return sorted(groups, key=lambda group: min(member.number for member in group))


def together(group: Sequence[Member]) -> dict[str, NDArray[Any]]:
    """The tensors of a group, row after row; shorter texts padded."""
    length = max(member.length for member in group)
    return {
        name: np.concatenate([_padded(member.prepared, name, length) for member in group])
        for name in group[0].prepared.inputs
    }


def apart(group: Sequence[Member], answers: Tensors, artifact: Artifact) -> list[dict[str, NDArray[Any]]]:
    """The answers to each member of a group: its rows, without what was answered at its padding."""
    axes = {spec.name: spec.shape for spec in artifact.outputs}
    lengths = {
        spec.shape[1]
        for spec in artifact.inputs
        if group[0].prepared.padding and isinstance(spec.shape[1], str)
    }
    found, at = [], 0
    longest = max(member.length for member in group)
    for member in group:
        rows = slice(at, at + member.rows)
        at += member.rows
        own = {}
        for name, answer in answers.items():
            cut = [rows] + [
                _kept(member, longest) if axis in lengths else slice(None) for axis in axes[name][1:]
            ]
            own[name] = answer[tuple(cut)]
        found.append(own)
    return found


def _fits(group: Sequence[Member], most: int) -> bool:
    if len(group) > most:
        return False
    longest = max(member.length for member in group)
    if not longest:
        return True
    tokens = longest * sum(member.rows for member in group)
    real = sum(member.length * member.rows for member in group)
    return tokens <= MOST_TOKENS and tokens - real <= MOST_PADDING * tokens


def _padded(prepared: Prepared, name: str, length: int) -> NDArray[Any]:
    tensor = prepared.inputs[name]
    if not prepared.padding or tensor.shape[1] == length:
        return tensor
    missing = length - tensor.shape[1]
    before, after = (missing, 0) if prepared.padding.left else (0, missing)
    widths = [(0, 0), (before, after), *[(0, 0)] * (tensor.ndim - 2)]
    return np.pad(tensor, widths, constant_values=prepared.padding.values[name])


def _kept(member: Member, longest: int) -> slice:
    """Where along the axis of tokens a member's own are."""
    assert member.prepared.padding is not None
    return slice(longest - member.length, None) if member.prepared.padding.left else slice(0, member.length)
