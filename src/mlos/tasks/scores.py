"""From a model's logits to the scores that people read: functions of one vector, in double precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Shares of one, for labels of which one is right."""
    powers = np.exp(logits.astype(np.float64) - float(logits.max()))
    shares: NDArray[np.float64] = powers / powers.sum()
    return shares


def sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Each label's own probability, for labels that do not exclude each other.

    ``1 / (1 + exp(-x))`` by way of tanh, which overflows nowhere.
    """
    probabilities: NDArray[np.float64] = 0.5 + 0.5 * np.tanh(0.5 * logits.astype(np.float64))
    return probabilities


def unchanged(logits: NDArray[Any]) -> NDArray[np.float64]:
    """The logits themselves, for what is no probability."""
    return logits.astype(np.float64)


SCORES: Mapping[str, Callable[[NDArray[Any]], NDArray[np.float64]]] = MappingProxyType(
    {"softmax": softmax, "sigmoid": sigmoid, "none": unchanged}
)
"""The functions by the names that the framework's pipelines give them."""
