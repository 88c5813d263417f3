"""Which positions of an output answer for something: all of them, or those the attention mask keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlos.parity.record import Case

MASK = "attention_mask"
FORCED = "decoder_input_ids"
"""The framework's own answer, which the record puts in so that every step's logits can be compared."""
DECISIONS = "logits"
"""The output whose last axis is decided over by an argmax."""


def labels_last(output: NDArray[Any]) -> NDArray[Any]:
    """A map (batch, labels, height, width) as (batch, height, width, labels); every other output as it is."""
    return np.moveaxis(output, 1, -1) if output.ndim == 4 else output


def valid_positions(case: Case, output: NDArray[Any]) -> NDArray[np.bool_]:
    """Where ``output`` means something: shape ``output.shape[:-1]``, false at padding.

    An output of shape (batch, length, features) is masked by an ``attention_mask`` of shape (batch, length);
    every other output means something everywhere. An encoder-decoder's mask is its source's, not its answer's.
    """
    mask = case.inputs.get(MASK)
    if mask is not None and FORCED not in case.inputs and output.ndim == 3 and output.shape[:2] == mask.shape:
        return mask.astype(np.bool_)
    return np.ones(output.shape[:-1], dtype=np.bool_)
