"""How much may be said of a set of samples, and what.

A percentile is printed only where enough samples stand behind it, by the early-stopping rule of MLPerf
Inference: with one sample over the estimate allowed, the chance of seeing so few is at most 1 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

_RISK = 0.01
AGREEMENT = 1.10
"""Windows agree where the largest is at most this many times the smallest."""


@cache
def minimum_samples(percentile: float) -> int:
    """The fewest samples with which ``percentile`` (between 0 and 100) may be printed.

    The smallest n for which at most one of n independent samples lies above the percentile with a
    probability of at most 1 %: ``p**n + n * (1 - p) * p**(n - 1) <= 0.01``. For 90, 95, 99 and 99.9 that is
    64, 130, 662 and 6636; 662 is the figure MLPerf Inference gives.
    """
    below = percentile / 100
    if not 0 < below < 1:
        raise ValueError(f"a percentile lies between 0 and 100, not at {percentile}")
    n = 1
    while below**n + n * (1 - below) * below ** (n - 1) > _RISK:
        n += 1
    return n


def quantile(samples: Sequence[float], percentile: float) -> float:
    """The nearest-rank percentile of at least one sample, however little may be said of it."""
    ordered = sorted(samples)
    return ordered[max(math.ceil(percentile / 100 * len(ordered)) - 1, 0)]


def percentile(samples: Sequence[float], percentile: float) -> float | None:
    """The nearest-rank percentile, or None where there are too few samples to print it."""
    return quantile(samples, percentile) if len(samples) >= minimum_samples(percentile) else None


def middle_half(samples: Sequence[float]) -> list[int]:
    """The places of the samples that are neither in the fastest quarter nor in the slowest; at least one."""
    places = sorted(range(len(samples)), key=lambda place: samples[place])
    return places[len(places) // 4 : len(places) - len(places) // 4]


@dataclass(frozen=True)
class WindowSummary:
    """A stretch of back-to-back requests: completions per second, and the 90th percentile in ms."""

    throughput: float
    p90_ms: float


def steady(windows: Sequence[WindowSummary], agreeing: int = 3) -> bool:
    """Whether the last ``agreeing`` windows agree within 10 % in throughput and in p90."""
    last = windows[-agreeing:]
    if len(last) < agreeing:
        return False
    return all(
        max(values) <= AGREEMENT * min(values)
        for values in ([window.throughput for window in last], [window.p90_ms for window in last])
    )


def stage_allowance(stages_ms: float) -> float:
    """By how many ms the client's time may exceed the sum of the server's stages: 10 % of it, at least 5 ms."""
    return max(0.10 * stages_ms, 5.0)
