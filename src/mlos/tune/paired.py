"""Two ways of doing the same thing, timed in alternation: what may be said of the ratio of their times.

Blocks come in groups of four, in random ABBA or BAAB order, so that what drifts meets both. A group gives one
ratio for each thing that is done, of the geometric means of its blocks' medians; and one between the two blocks
of the reference alone, which shows what chance makes. Intervals are BCa bootstraps (Efron, 1987) of the mean
of the groups' log ratios.
"""

from __future__ import annotations

import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from mlos.errors import MissingExtraError

LEVEL = 0.95
LEAST_GROUPS = 3
"""Fewer say nothing of an interval."""
LEAST_EFFECT = 0.02
"""Below it nothing is called faster or slower, however narrow the interval."""
_BLOCK_SECONDS = 0.1
_MOST_RUNS = 25
_GAP_SECONDS = 0.005
"""Between two blocks, so that the threads of one side have gone to sleep when the other begins."""

Run = Callable[[], object]


class Ratio(BaseModel):
    """A time over the reference's: below 1 is faster. ``low`` to ``high`` is the interval, of ``n`` groups.

    ``floor`` is the noise floor: the 95th percentile of |ratio - 1| between blocks of the reference.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    ratio: float
    low: float
    high: float
    n: int
    floor: float

    @model_validator(mode="after")
    def _ordered(self) -> Ratio:
        if not self.low <= self.high:
            raise ValueError(f"an interval from {self.low} to {self.high}")
        return self

    @property
    def faster(self) -> bool:
        """Whether it may be called faster: the interval excludes 1, and the effect is above the noise."""
        return self.high < 1 and 1 - self.ratio > max(LEAST_EFFECT, self.floor)

    @property
    def likely_faster(self) -> bool:
        """Whether it is what to take: the interval excludes 1, and the effect is worth it.

        A claim to others needs more (:attr:`faster`): the floor is the noise of single groups, and on a host
        that others share an effect on which ten groups agree may lie below it.
        """
        return self.high < 1 and 1 - self.ratio > LEAST_EFFECT

    @property
    def slower(self) -> bool:
        """Whether it may be called slower, by the same rule."""
        return self.low > 1 and self.ratio - 1 > max(LEAST_EFFECT, self.floor)

    def __str__(self) -> str:
        return f"{self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Group(BaseModel):
    """One group of four blocks: the medians, in seconds, of both sides' two blocks for each thing done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: dict[str, tuple[float, float]]
    candidate: dict[str, tuple[float, float]]

    @property
    def log_ratio(self) -> float:
        """The mean over all things done of the log ratio candidate over reference."""
        return statistics.fmean(
            statistics.fmean(map(math.log, self.candidate[name])) - statistics.fmean(map(math.log, both))
            for name, both in self.reference.items()
        )

    @property
    def log_noise(self) -> float:
        """The same between the two blocks of the reference."""
        return statistics.fmean(math.log(one) - math.log(other) for one, other in self.reference.values())


def groups(
    reference: Mapping[str, Run], candidate: Mapping[str, Run], number: int, seed: int
) -> Iterator[Group]:
    """Time both sides' ways of doing the same things, group after group; the first runs of all warm up."""
    order = random.Random(seed)  # noqa: S311  # an order of blocks is no secret
    runs = {name: _runs(reference[name], candidate[name]) for name in reference}
    for _ in range(number):
        sides = ["reference", "candidate", "candidate", "reference"]
        if order.random() < 0.5:
            sides = ["candidate", "reference", "reference", "candidate"]
        found: dict[str, dict[str, list[float]]] = {"reference": {}, "candidate": {}}
        for side in sides:
            time.sleep(_GAP_SECONDS)
            for name, run in (reference if side == "reference" else candidate).items():
                found[side].setdefault(name, []).append(_median(run, runs[name]))
        yield Group.model_validate(found)


def ratio_of(found: Sequence[Group]) -> Ratio:
    """The ratio of candidate to reference over all things done, and how far it may be believed.

    Raises:
        MissingExtraError: if scipy is not installed.
    """
    return ratio_of_logs([group.log_ratio for group in found], [group.log_noise for group in found])


def ratio_of_logs(logs: Sequence[float], noise: Sequence[float]) -> Ratio:
    """The same of one log ratio a group, and one of the reference with itself.

    Raises:
        MissingExtraError: if scipy is not installed.
    """
    low, high = _interval(logs)
    return Ratio(
        ratio=round(math.exp(statistics.fmean(logs)), 4),
        low=round(math.exp(low), 4),
        high=round(math.exp(high), 4),
        n=len(logs),
        floor=round(float(np.quantile(np.abs(np.exp(noise) - 1), 0.95)), 4),
    )


def require() -> None:
    """See to it that intervals can be computed, before minutes are spent on measuring.

    Raises:
        MissingExtraError: if scipy is not installed.
    """
    _scipy()


def _runs(*sides: Run) -> int:
    """How often a thing is done in a block, after both sides have done it once to warm up."""
    for run in sides:
        run()
    seconds = max(_median(run, 1) for run in sides)
    return max(1, min(_MOST_RUNS, math.ceil(_BLOCK_SECONDS / seconds)))


def _median(run: Run, times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def _interval(logs: Sequence[float]) -> tuple[float, float]:
    """Where the mean of ``logs`` lies; all that was seen where resampling has nothing to say."""
    scipy = _scipy()
    if np.ptp(logs) == 0:
        return logs[0], logs[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.DegenerateDataWarning)  # answered with NaN, which is seen below
        found = scipy.bootstrap(
            (np.asarray(logs),), np.mean, confidence_level=LEVEL, method="BCa", rng=np.random.default_rng(0)
        ).confidence_interval
    low, high = float(found.low), float(found.high)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (min(logs), max(logs))


def _scipy() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError.of("validate", "tuning, whose numbers carry intervals,") from error
    return stats
