"""Objects in an image, as a task answers them: a label, a score and a box of whole pixels for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

THRESHOLD = 0.5
"""Score above which an object is answered where a request does not say: the framework's pipeline's."""
PIXELS = 1
"""How far a corner may lie: it is cut to a whole pixel, and one beside an edge is cut to either side."""


def is_objects(value: Sequence[Any]) -> bool:
    """Whether these are objects; there may be none."""
    return all(isinstance(entry, Mapping) and {"score", "label", "box"} <= set(entry) for entry in value)


def unmatched(
    expected: Sequence[Mapping[str, Any]],
    got: Sequence[Mapping[str, Any]],
    ties: Callable[[float, float], bool],
    threshold: float,
) -> tuple[Any, Any] | None:
    """The first object of either side that the other lacks, beside what stands in its place; None if none does.

    Both come in the order of the model's queries, which no score changes. Objects are the same whose labels
    are equal, whose scores tie and whose corners lie within :data:`PIXELS`. An object whose score ties with
    the threshold may be missing.
    """
    left = list(got)
    for wanted in expected:
        while left and not _same(wanted, left[0], ties) and ties(left[0]["score"], threshold):
            left.pop(0)
        if left and _same(wanted, left[0], ties):
            left.pop(0)
        elif not ties(wanted["score"], threshold):
            return wanted, left[0] if left else None
    extra = next((entry for entry in left if not ties(entry["score"], threshold)), None)
    return None if extra is None else (None, extra)


def _same(one: Mapping[str, Any], other: Mapping[str, Any], ties: Callable[[float, float], bool]) -> bool:
    first, second = one["box"], other["box"]
    return (
        one["label"] == other["label"]
        and ties(other["score"], one["score"])
        and set(first) == set(second)
        and all(abs(first[corner] - second[corner]) <= PIXELS for corner in first)
    )
