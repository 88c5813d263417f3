"""Could this parity have failed? A model that answers every input alike agrees with anything like it.

Spread of an output: each sample of each case gives one vector of features, its mean over the valid positions
(those the attention mask keeps; every position where there is no mask); the spread of a feature is its largest
value over all samples of all cases minus its smallest; the spread of the output is that of its widest feature.
In a map, (batch, channels, height, width), every pixel is a position. Outputs whose last axis differs between
cases have a single feature, the mean of each sample. An output is vacuous where its spread is under 1000 atol,
or, for ``logits`` alone, where the argmax is the same at every valid position of every sample: elsewhere one
outlier dimension leads everywhere in good models too.

Where the framework wrote, something it wrote must vary within itself: a model that says one token over and over
may take no notice of its own words, and no wrong cache would show. An encoder-decoder's generation varies where
the argmax is not the same at every step; a language model's, whose record holds the logits of the prompt, where
the text is not one piece over and over, as often as there are tokens. One token alone does not count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.parity.positions import DECISIONS, FORCED, labels_last, valid_positions
from mlos.parity.record import Case, GoldenRecord
from mlos.parity.tolerance import TOLERANCES, Tolerance

SPREAD_PER_ATOL = 1000.0


def vacuity(golden: GoldenRecord, tolerance: Tolerance) -> str | None:
    """Why the record cannot tell a right model from a wrong one, or None if it can.

    The record is the framework's and in fp32, whatever the precision of the artifact held to it; so a row
    without an elementwise bound takes that of fp32 here.
    """
    if not golden.cases:
        return "the golden record has no cases"
    atol = tolerance.atol if tolerance.atol is not None else TOLERANCES["fp32"].atol
    assert atol is not None, "the fp32 row has an elementwise bound"
    least = SPREAD_PER_ATOL * atol
    for name in dict.fromkeys(name for case in golden.cases for name in case.outputs):
        cases = [case for case in golden.cases if name in case.outputs]
        widest = _spread(name, cases)
        if not widest >= least:
            return f"{name}: spread across inputs {widest:.3g} is under {least:g} (1000 times atol {atol:g})"
        if name == DECISIONS and len(_decided(cases)) == 1:
            return f"{name}: the argmax is {_decided(cases).pop()} for every input"
    varied = [varies for case in golden.cases for varies in _varied(case)]
    if varied and not any(varied):
        return f"each of the {len(varied)} generations repeats one token"
    return None


def _spread(name: str, cases: list[Case]) -> float:
    wanted = [labels_last(np.atleast_1d(np.asarray(case.outputs[name], dtype=np.float64))) for case in cases]
    features = [_features(case, output) for case, output in zip(cases, wanted, strict=True)]
    if len({rows.shape[1] for rows in features}) > 1:
        features = [rows.mean(axis=1, keepdims=True) for rows in features]
    samples = np.concatenate(features)
    return float(np.ptp(samples, axis=0).max(initial=0.0)) if len(samples) else 0.0


def _features(case: Case, output: NDArray[np.float64]) -> NDArray[np.float64]:
    """One row per sample: (batch, ..., features) averaged over the valid positions to (batch, features)."""
    if output.ndim == 1:
        return output[:, None]
    weights = valid_positions(case, output).reshape(len(output), -1).astype(np.float64)
    flat = output.reshape(len(output), -1, output.shape[-1])
    total = np.einsum("bp,bpf->bf", weights, flat)
    mean: NDArray[np.float64] = total / np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    return mean


def _varied(case: Case) -> list[bool]:
    """Of each generation of more than one token, whether it varies within itself."""
    if FORCED in case.inputs and DECISIONS in case.outputs:
        steps = case.outputs[DECISIONS].argmax(axis=-1)
        return [len(np.unique(row)) > 1 for row in steps if len(row) > 1]
    results = case.result if isinstance(case.result, list) else [case.result]
    written = [each for each in results if isinstance(each, dict) and "finish_reason" in each]
    lengths = [(each["text"], each["usage"]["completion_tokens"]) for each in written]
    return [not _repeats(text, length) for text, length in lengths if length > 1]


def _repeats(text: str, times: int) -> bool:
    """Whether ``text`` is one piece that many times over."""
    piece = text[: len(text) // times]
    return bool(text) and piece * times == text


def _decided(cases: list[Case]) -> set[Any]:
    outputs = [(case, labels_last(case.outputs[DECISIONS])) for case in cases]
    return {
        int(decision)
        for case, output in outputs
        for decision in np.unique(output.argmax(axis=-1)[valid_positions(case, output)])
    }
