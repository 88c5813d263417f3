"""A model's outputs against the framework's: one measure per output, over all cases of the record.

Values are compared at every position, padding included: the same graph on the same inputs gives the same
numbers there too, and a request with tensors is answered with them. Decisions (the argmax of ``logits``) and
distributions (their softmax) are compared only where the attention mask is set: at padding nothing is decided.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.errors import ParityError
from mlos.model import ParityMeasure, Tensors
from mlos.parity.positions import DECISIONS, labels_last, valid_positions
from mlos.parity.record import Case, GoldenRecord
from mlos.parity.tolerance import Tolerance, tolerance_named


def compare_outputs(
    golden: GoldenRecord, answers: Mapping[str, Tensors], tolerance: Tolerance
) -> tuple[ParityMeasure, ...]:
    """Measure ``answers`` (case name to output tensors) against the record, in the order of its outputs.

    The error is the largest over all elements of all cases, the cosine that of the worst sample (an element of
    the first axis, flattened), the argmax agreement the share over all decided positions of all cases. A
    position whose two best reference logits differ by less than 2 atol decides nothing and is not counted.
    Where the row bounds it, the divergence of ``logits`` is the mean over all valid positions of all cases.

    Raises:
        ParityError: if an answer is missing, has another shape, or holds NaN or infinity; such an answer has
            no error to print.
    """
    if not golden.cases:
        raise ParityError("the golden record has no cases")
    outputs = dict.fromkeys(name for case in golden.cases for name in case.outputs)
    return tuple(
        _measure(name, [case for case in golden.cases if name in case.outputs], answers, tolerance)
        for name in outputs
    )


def describe(measure: ParityMeasure) -> str:
    """The measure as one line: error beside tolerance."""
    where = f" in case {measure.case!r}" if measure.case else ""
    if measure.atol is not None and measure.rtol is not None:
        bound = f"atol {measure.atol:g}, rtol {measure.rtol:g} ({measure.tolerance})"
    else:
        bound = measure.tolerance
    line = f"{measure.output}: max |error| {measure.max_abs_error:.3g} against tolerance {bound}{where}"
    line += f"; cosine {measure.cosine:.7f}"
    if measure.kl_divergence is not None:
        most = tolerance_named(measure.tolerance).kl_divergence
        line += f"; mean KL divergence {measure.kl_divergence:.3g} of at most {most:g} nats"
    if measure.argmax_agreement is not None:
        line += f"; argmax agreement {measure.argmax_agreement:.2%}"
    return line


def require(measures: Sequence[ParityMeasure]) -> None:
    """Raise if a measure did not pass.

    Raises:
        ParityError: naming the first output that failed, its error and the tolerance.
    """
    for measure in measures:
        if not measure.passed:
            raise ParityError(f"parity failed: {describe(measure)}", field=measure.output)


def _measure(
    name: str, cases: Sequence[Case], answers: Mapping[str, Tensors], tolerance: Tolerance
) -> ParityMeasure:
    worst_case, max_abs_error, worst_ratio, cosine = cases[0].name, -1.0, 0.0, 1.0
    agreed = decided = positions = 0
    divergence = 0.0
    for case in cases:
        reference, answer = _pair(name, case, answers)
        error = np.abs(answer - reference)
        largest = float(error.max(initial=0.0))
        if largest > max_abs_error:
            worst_case, max_abs_error = case.name, largest
        if tolerance.atol is not None and tolerance.rtol is not None:
            ratio = error / (tolerance.atol + tolerance.rtol * np.abs(reference))
            worst_ratio = max(worst_ratio, float(ratio.max(initial=0.0)))
        cosine = min(cosine, _worst_cosine(reference, answer))
        if name == DECISIONS:
            reference, answer = labels_last(reference), labels_last(answer)
            case_agreed, case_decided = _decisions(case, reference, answer, tolerance)
            agreed, decided = agreed + case_agreed, decided + case_decided
            if tolerance.kl_divergence is not None:
                each = _divergences(reference, answer)[valid_positions(case, reference)]
                divergence, positions = divergence + float(each.sum()), positions + each.size
    bounded = tolerance.atol is not None
    agreement = agreed / decided if decided else (1.0 if name == DECISIONS else None)
    mean = divergence / positions if positions else None
    return ParityMeasure(
        output=name,
        case=worst_case,
        max_abs_error=max_abs_error,
        atol=tolerance.atol,
        rtol=tolerance.rtol,
        worst_ratio=worst_ratio if bounded else None,
        cosine=cosine,
        argmax_agreement=agreement,
        kl_divergence=mean,
        tolerance=tolerance.name,
        passed=(not bounded or worst_ratio <= 1)
        and cosine >= tolerance.cosine
        and (agreement is None or agreement >= tolerance.argmax)
        # An output that has no distribution is not held to anything by such a row, so it does not pass.
        and (tolerance.kl_divergence is None or (mean is not None and mean <= tolerance.kl_divergence)),
    )


def _pair(
    name: str, case: Case, answers: Mapping[str, Tensors]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Reference and answer in double precision, so that the comparison itself rounds nothing."""
    where = f"output {name!r} in case {case.name!r}"
    answer = answers.get(case.name, {}).get(name)
    if answer is None:
        raise ParityError(f"parity failed: {where} was not answered", field=name)
    reference = np.asarray(case.outputs[name])
    if answer.shape != reference.shape:
        expected, got = str(list(reference.shape)), str(list(answer.shape))
        raise ParityError(
            f"parity failed: {where} has shape {got}, the framework's has {expected}",
            field=name,
            expected=expected,
            got=got,
        )
    pair = reference.astype(np.float64), np.asarray(answer).astype(np.float64)
    for values, whose in zip(pair, ("the framework's", "the model's"), strict=True):
        if not np.isfinite(values).all():
            count = int(values.size - np.isfinite(values).sum())
            raise ParityError(
                f"parity failed: {where}: {count} of {whose} {values.size} values are NaN or infinite",
                field=name,
            )
    return pair


def _worst_cosine(reference: NDArray[np.float64], answer: NDArray[np.float64]) -> float:
    """The least cosine of any sample; 1 for two zero vectors, 0 where only one is zero."""
    rows = (len(reference), -1) if reference.ndim and reference.size else (1, -1)
    one, other = reference.reshape(rows), answer.reshape(rows)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    dots = (one * other).sum(axis=1)
    equal = (one == other).all(axis=1)
    cosines = np.where(equal, 1.0, np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0))
    return float(np.clip(cosines, -1.0, 1.0).min(initial=1.0))


def _decisions(
    case: Case, reference: NDArray[np.float64], answer: NDArray[np.float64], tolerance: Tolerance
) -> tuple[int, int]:
    """How many decisions agree, of how many."""
    if not reference.ndim or reference.shape[-1] < 2:
        return 0, 0
    decided = valid_positions(case, reference)
    if tolerance.atol is not None:
        second, best = np.moveaxis(np.partition(reference, -2, axis=-1)[..., -2:], -1, 0)
        decided = decided & (best - second >= 2 * tolerance.atol)
    agreed: NDArray[Any] = reference.argmax(axis=-1) == answer.argmax(axis=-1)
    return int((agreed & decided).sum()), int(decided.sum())


def _divergences(reference: NDArray[np.float64], answer: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence of the answer's distribution from the reference's at each position, in nats.

    sum over tokens of p * (log p - log q), with p and q the softmax of the last axis.
    """
    log_p, log_q = _log_softmax(reference), _log_softmax(answer)
    found: NDArray[np.float64] = (np.exp(log_p) * (log_p - log_q)).sum(axis=-1)
    return np.maximum(found, 0.0)  # it cannot be negative, its rounding can


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found
