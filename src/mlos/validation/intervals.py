"""How far a number would move if it were measured again: its 95 % interval.

Percentiles get the distribution-free interval between two order statistics (the binomial test of a quantile,
exact whatever the samples' distribution); sums over sums (throughput, tokens per second) get the BCa bootstrap
(Efron, 1987). Both are scipy's, and both take the samples for independent: a disturbance that lasts through
many requests in a row makes the true interval wider than the printed one. Windows instead of single requests
are resampled for throughput, which takes in what lasts shorter than a window. Nothing here covers another host,
another boot or another day.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from mlos.errors import MissingExtraError

LEVEL = 0.95
RESAMPLES = 9999
_BATCH = 500
_SEED = 0
"""Of the resampling, so that the same samples give the same interval."""


class Interval(BaseModel):
    """Where the true value lies, in the unit of the number it belongs to, at a confidence of ``level``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    level: float = LEVEL
    method: Literal["order statistics", "BCa bootstrap"]

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if not self.low <= self.high:
            raise ValueError(f"an interval from {self.low} to {self.high}")
        return self


def require() -> None:
    """See to it that intervals can be computed, before an hour is spent on measuring.

    Raises:
        MissingExtraError: if scipy is not installed.
    """
    _scipy()


def of_percentile(samples: Sequence[float], percentile: float) -> Interval | None:
    """The interval of a percentile (between 0 and 100); None where the samples are too few to bound it.

    Raises:
        MissingExtraError: if scipy is not installed.
    """
    if not samples:
        return None
    found = _scipy().quantile_test(samples, q=0, p=percentile / 100).confidence_interval(LEVEL)
    return _interval(found, "order statistics")


def of_rate(amounts: Sequence[float], seconds: Sequence[float]) -> Interval | None:
    """The interval of ``sum(amounts) / sum(seconds)``, pairs of an amount and its seconds being resampled.

    None where there are fewer than three pairs, or all are alike: then nothing can be learnt from resampling.

    Raises:
        MissingExtraError: if scipy is not installed.
    """
    scipy = _scipy()
    if len(amounts) < 3:
        return None

    def rate(amount: NDArray[Any], second: NDArray[Any], axis: int = -1) -> Any:
        return amount.sum(axis=axis) / second.sum(axis=axis)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.DegenerateDataWarning)  # answered with NaN, which is seen below
        warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 on the way to that NaN
        found = scipy.bootstrap(
            (np.asarray(amounts, dtype=float), np.asarray(seconds, dtype=float)),
            rate,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=_BATCH,
            confidence_level=LEVEL,
            method="BCa",
            rng=np.random.default_rng(_SEED),
        ).confidence_interval
    return _interval(found, "BCa bootstrap")


def _interval(found: Any, method: Literal["order statistics", "BCa bootstrap"]) -> Interval | None:
    low, high = float(found.low), float(found.high)
    if not (math.isfinite(low) and math.isfinite(high)):
        return None
    return Interval(low=round(low, 4), high=round(high, 4), method=method)


def _scipy() -> ModuleType:
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError.of("validate", "a tier whose numbers carry intervals") from error
    return stats
