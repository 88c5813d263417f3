"""What a model takes and what it answers, against the framework's: the first place where they part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlos.model import Tensors
from mlos.parity.boxes import THRESHOLD, is_objects, unmatched
from mlos.parity.masks import read_masks, share_differing
from mlos.parity.positions import FORCED
from mlos.parity.record import Case
from mlos.parity.tolerance import Tolerance

INPUT_TOLERANCE = 1e-5
"""How far a preprocessed fraction may stand from the framework's, in its own unit."""

EDGES = 0.001
"""Share of an image's pixels that may have another label: along the edges of its parts two labels tie."""


@dataclass(frozen=True)
class Difference:
    """One place that differs from the framework's; ``str()`` of it is a sentence."""

    where: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.where} from the framework's: expected {self.expected}, got {self.got}"


def compare_inputs(case: Case, tensors: Tensors) -> Difference | None:
    """Whether preprocessing gave the framework's tensors: names, element types, shapes and values.

    Whole numbers must be equal, fractions (pixels, samples) within :data:`INPUT_TOLERANCE`. What the record
    forces on a decoder is no part of a request, and not compared.
    """
    wanted = {name: tensor for name, tensor in case.inputs.items() if name != FORCED}
    if set(tensors) != set(wanted):
        return Difference("tensors differ", _listed(wanted), _listed(tensors))
    for name, reference in wanted.items():
        given = tensors[name]
        if (given.dtype, given.shape) != (reference.dtype, reference.shape):
            return Difference(
                f"{name} differs",
                f"{reference.dtype.name} {list(reference.shape)}",
                f"{given.dtype.name} {list(given.shape)}",
            )
        if reference.dtype.kind == "f":
            differing = np.argwhere(~(np.abs(given - reference) <= INPUT_TOLERANCE))
        else:
            differing = np.argwhere(given != reference)
        if len(differing):
            place = tuple(differing[0])
            return Difference(
                f"{name} differ at {[int(axis) for axis in place]}", str(reference[place]), str(given[place])
            )
    return None


def compare_result(case: Case, result: Any, tolerance: Tolerance) -> Difference | None:
    """Whether a task's result (in the words of JSON) is the framework's.

    Text, whole numbers and structure must be equal. A vector (a list of fractions) is held to the tolerance's
    cosine and, where the row has one, its elementwise bound. A ranking (a list of objects with a ``score``)
    must hold the framework's entries in its order, except that entries whose scores tie within the tolerance
    may change places; scores are probabilities, so an error e of the logits is an error of 2 e of the score,
    relative to it. Of parts of an image (a list of objects with a ``mask``) at most the share :data:`EDGES` of
    the pixels may differ, more by as much as the row lets decisions differ. Objects in an image (a list of
    objects with a ``box``) may lie a pixel away, and one whose score ties with the request's threshold may be
    missing. Rows without an elementwise bound leave rankings, objects in images and single fractions to the
    outputs' own measures, and generated text to their divergence: where one token turns out otherwise, all
    that follow may. Of a generation they compare the tokens of the prompt alone. Where the outputs are the
    answer, each is held as one vector.
    """
    if case.result is None:
        return _compare_outputs(case, result, tolerance)
    threshold = case.request.parameters.get("threshold", THRESHOLD)
    return _compare("result", case.result, result, tolerance, threshold)


def _compare(
    where: str, expected: Any, got: Any, tolerance: Tolerance, threshold: float = THRESHOLD
) -> Difference | None:
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        if set(expected) != set(got):
            return Difference(f"{where} differs", _listed(expected), _listed(got))
        if tolerance.atol is None and "finish_reason" in expected:
            expected, got = (
                {"usage": {"prompt_tokens": each["usage"]["prompt_tokens"]}} for each in (expected, got)
            )
        found = (_compare(f"{where}.{key}", expected[key], got[key], tolerance, threshold) for key in expected)
        return next(filter(None, found), None)
    if _is_list(expected) and _is_list(got):
        if _is_parts(expected) and _is_parts(got):
            return _compare_parts(where, expected, got, tolerance)
        if (expected or got) and is_objects(expected) and is_objects(got):
            return _compare_objects(where, expected, got, tolerance, threshold)
        if len(expected) != len(got):
            return Difference(f"{where} differs", f"{len(expected)} entries", f"{len(got)} entries")
        if _is_vector(expected) and _is_vector(got):
            return _compare_vector(where, expected, got, tolerance)
        if _is_ranking(expected) and _is_ranking(got):
            return _compare_ranking(where, expected, got, tolerance)
        pairs = enumerate(zip(expected, got, strict=True))
        found = (_compare(f"{where}[{at}]", one, other, tolerance, threshold) for at, (one, other) in pairs)
        return next(filter(None, found), None)
    if isinstance(expected, float) and isinstance(got, float | int) and not isinstance(got, bool):
        close = tolerance.atol is None or tolerance.rtol is None
        if not close:
            close = abs(got - expected) <= (tolerance.atol or 0.0) + (tolerance.rtol or 0.0) * abs(expected)
        return None if close else Difference(f"{where} differs", f"{expected:.7g}", f"{got:.7g}")
    if type(expected) is not type(got) or expected != got:
        return Difference(f"{where} differs", _shown(expected), _shown(got))
    return None


def _compare_outputs(case: Case, result: Any, tolerance: Tolerance) -> Difference | None:
    """Output tensors as nested lists."""
    if not isinstance(result, Mapping) or set(result) != set(case.outputs):
        got = _listed(result) if isinstance(result, Mapping) else _shown(result)
        return Difference("result differs", _listed(case.outputs), got)
    for name, expected in case.outputs.items():
        where, reference = f"result.{name}", np.asarray(expected)
        try:
            given = np.asarray(result[name])
        except ValueError as error:  # a ragged list
            return Difference(f"{where} differs", f"shape {list(reference.shape)}", str(error))
        if given.shape != reference.shape:
            return Difference(
                f"{where} differs", f"shape {list(reference.shape)}", f"shape {list(given.shape)}"
            )
        if given.dtype.kind not in "biuf":
            return Difference(f"{where} differs", "numbers", given.dtype.name)
        found = None
        if reference.dtype.kind != "f" and not np.array_equal(given, reference):
            found = Difference(f"{where} differs", _shown(reference.tolist()), _shown(given.tolist()))
        elif reference.dtype.kind == "f" and reference.size:
            found = _compare_vector(where, reference.ravel().tolist(), given.ravel().tolist(), tolerance)
        if found is not None:
            return found
    return None


def _compare_vector(
    where: str, expected: Sequence[float], got: Sequence[float], tolerance: Tolerance
) -> Difference | None:
    one, other = np.asarray(expected, dtype=np.float64), np.asarray(got, dtype=np.float64)
    if not np.isfinite(other).all():
        return Difference(f"{where} differs", "finite numbers", "NaN or infinity")
    if tolerance.atol is not None and tolerance.rtol is not None:
        excess = np.abs(other - one) - (tolerance.atol + tolerance.rtol * np.abs(one))
        worst = int(excess.argmax())
        if excess[worst] > 0:
            return Difference(f"{where}[{worst}] differs", f"{one[worst]:.7g}", f"{other[worst]:.7g}")
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / norms if norms else float(np.array_equal(one, other))
    if cosine < tolerance.cosine:
        return Difference(f"{where} differs", f"cosine >= {tolerance.cosine:g}", f"cosine {cosine:.7f}")
    return None


def _compare_ranking(
    where: str, expected: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]], tolerance: Tolerance
) -> Difference | None:
    ties = _ties(tolerance)
    if ties is None:
        return None
    left = list(expected)
    for rank, (reference, entry) in enumerate(zip(expected, got, strict=True)):
        same = next((one for one in left if _identity(one) == _identity(entry)), None)
        if same is None or not ties(same["score"], reference["score"]):
            return Difference(f"{where}[{rank}] differs", _shown(reference), _shown(entry))
        if not ties(entry["score"], same["score"]):
            return Difference(f"{where}[{rank}].score differs", f"{same['score']:.7g}", f"{entry['score']:.7g}")
        left.remove(same)
    return None


def _compare_objects(
    where: str,
    expected: Sequence[Mapping[str, Any]],
    got: Sequence[Mapping[str, Any]],
    tolerance: Tolerance,
    threshold: float,
) -> Difference | None:
    ties = _ties(tolerance)
    found = None if ties is None else unmatched(expected, got, ties, threshold)
    if found is None:
        return None
    one, other = ("no more objects" if each is None else _shown(each) for each in found)
    return Difference(f"{where} differs", one, other)


def _ties(tolerance: Tolerance) -> Callable[[float, float], bool] | None:
    """Whether a score is another, which the row's errors of logits allow; None if it does not bound them."""
    if tolerance.atol is None or tolerance.rtol is None:
        return None
    relative = 2 * (tolerance.atol + tolerance.rtol)
    return lambda score, reference: abs(score - reference) <= relative * abs(reference)


def _compare_parts(
    where: str, expected: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]], tolerance: Tolerance
) -> Difference | None:
    """Parts that both have come in the same order and are alike but for the masks; a part may be all edge."""
    try:
        one, other = read_masks(expected), read_masks(got)
    except ValueError as error:
        return Difference(f"{where} differs", "masks as PNG files in base64", str(error))
    sizes = [sorted({mask.shape for mask in masks.values()}) for masks in (one, other)]
    if sizes[0] != sizes[1]:
        return Difference(f"{where} differs", f"masks of {sizes[0]} pixels", f"masks of {sizes[1]} pixels")
    allowed, share = EDGES + (1 - tolerance.argmax), share_differing(one, other)
    if share > allowed:
        return Difference(
            f"{where} differs", f"at most {allowed:.2%} of the pixels with another label", f"{share:.2%}"
        )
    shared = [key for key in one if key in other]
    order = [key for key in other if key in one]
    if shared != order:
        return Difference(f"{where} differs", _shown(shared), _shown(order))
    first, second = dict(zip(one, expected, strict=True)), dict(zip(other, got, strict=True))
    found = (
        _compare(f"{where}.{key[0]}", _unmasked(first[key]), _unmasked(second[key]), tolerance)
        for key in shared
    )
    return next(filter(None, found), None)


def _unmasked(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "mask"}


def _identity(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "score"}


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_vector(value: Sequence[Any]) -> bool:
    return bool(value) and all(isinstance(element, float) for element in value)


def _is_ranking(value: Sequence[Any]) -> bool:
    return bool(value) and all(
        isinstance(entry, Mapping) and isinstance(entry.get("score"), float) for entry in value
    )


def _is_parts(value: Sequence[Any]) -> bool:
    return bool(value) and all(
        isinstance(entry, Mapping) and {"label", "mask"} <= set(entry) for entry in value
    )


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(sorted(names)) or "none"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
