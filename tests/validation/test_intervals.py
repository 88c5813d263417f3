from __future__ import annotations

import random
import sys
from statistics import median

import pytest

from mlos.errors import MissingExtraError
from mlos.validation import intervals, stats


def test_a_percentile_lies_between_two_of_its_samples() -> None:
    chance = random.Random(1)
    samples = [chance.lognormvariate(3, 0.4) for _ in range(700)]
    for percentile in (50, 90, 95, 99):
        found = intervals.of_percentile(samples, percentile)
        assert found is not None
        assert found.low <= stats.quantile(samples, percentile) <= found.high
        assert all(any(abs(edge - sample) < 1e-3 for sample in samples) for edge in (found.low, found.high))
        assert (found.level, found.method) == (0.95, "order statistics")


@pytest.mark.parametrize("percentile", [50.0, 90.0, 95.0, 99.0])
def test_where_a_percentile_may_be_printed_it_has_an_interval(percentile: float) -> None:
    samples = [float(number) for number in range(stats.minimum_samples(percentile))]
    assert intervals.of_percentile(samples, percentile) is not None


def test_the_interval_of_a_median_holds_it_about_as_often_as_it_says() -> None:
    chance = random.Random(2)
    held = 0
    for _ in range(400):
        found = intervals.of_percentile([chance.expovariate(1) for _ in range(64)], 50)
        assert found is not None
        held += found.low <= 0.693147 <= found.high
    assert held >= 0.93 * 400, "distribution-free intervals are at least as wide as they must be"


def test_the_interval_of_a_rate_holds_it_about_as_often_as_it_says() -> None:
    chance = random.Random(3)
    held = 0
    for _ in range(100):
        seconds = [chance.expovariate(1) + 0.1 for _ in range(60)]
        found = intervals.of_rate([10.0] * 60, seconds)
        assert found is not None
        held += found.low <= 10 / 1.1 <= found.high
    assert held >= 88


def test_the_same_samples_give_the_same_interval() -> None:
    amounts, seconds = [3.0, 4.0, 5.0, 9.0], [1.0, 1.5, 2.0, 2.5]
    assert intervals.of_rate(amounts, seconds) == intervals.of_rate(amounts, seconds)


def test_nothing_is_said_of_what_cannot_vary() -> None:
    assert intervals.of_rate([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]) is None
    assert intervals.of_rate([1.0], [2.0]) is None
    assert intervals.of_percentile([], 50) is None
    assert intervals.of_percentile([1.0, 2.0], 99) is None


def test_a_wider_spread_has_a_wider_interval() -> None:
    narrow = intervals.of_percentile([100 + number / 100 for number in range(100)], 50)
    wide = intervals.of_percentile([100 + number for number in range(100)], 50)
    assert narrow is not None
    assert wide is not None
    assert wide.high - wide.low > 10 * (narrow.high - narrow.low)
    assert median([wide.low, wide.high]) == pytest.approx(150, abs=5)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingExtraError) as missing:
        intervals.require()
    assert missing.value.hint == "pip install 'mlos[validate]'"


def test_an_interval_is_not_upside_down() -> None:
    with pytest.raises(ValueError, match="from 2"):
        intervals.Interval(low=2, high=1, method="order statistics")
