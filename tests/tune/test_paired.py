"""What may be said of two ways of doing the same thing: the rule is tried on times that are known."""

from __future__ import annotations

import numpy as np
import pytest

from mlos.tune.paired import LEAST_EFFECT, Group, Ratio, groups, ratio_of, ratio_of_logs


def about(ratio: float, seed: int) -> list[float]:
    """Ten ratios that are nearly this one."""
    return [ratio * (1 + 0.01 * float(chance)) for chance in np.random.default_rng(seed).normal(size=10)]


def of(ratios: list[float], noise: list[float]) -> Ratio:
    return ratio_of_logs(np.log(ratios).tolist(), np.log(noise).tolist())


def test_a_clear_difference_is_called_by_its_name() -> None:
    found = of(about(0.5, 0), about(1, 1))
    assert found.faster
    assert not found.slower
    assert 0.48 < found.low < found.ratio < found.high < 0.52
    back = of(about(2, 2), about(1, 3))
    assert back.slower
    assert not back.faster


@pytest.mark.parametrize("true", [1.0, 1 - 0.5 * LEAST_EFFECT])
def test_nothing_and_next_to_nothing_are_no_difference(true: float) -> None:
    found = of([true, true * 1.0001, true * 0.9999] * 4, [1.0001, 0.9999] * 6)
    assert found.high <= 1.001
    assert not found.faster
    assert not found.likely_faster
    assert not found.slower


def test_an_effect_below_the_noise_floor_is_no_difference() -> None:
    found = of([0.9, 0.9, 0.91, 0.89] * 3, [1.15, 0.87] * 6)
    assert found.high < 1
    assert found.floor > 0.1
    assert not found.faster
    assert found.likely_faster  # which is enough to choose by


def test_an_interval_that_holds_1_is_no_difference() -> None:
    found = of([0.5, 1.5, 0.7, 1.3, 0.6], [1.0, 1.001, 0.999, 1.0, 1.0])
    assert found.low < 1 < found.high
    assert not found.faster
    assert not found.likely_faster


def test_equal_groups_have_an_interval_without_width() -> None:
    found = of([0.5] * 4, [1.0] * 4)
    assert (found.ratio, found.low, found.high, found.floor) == (0.5, 0.5, 0.5, 0.0)


def test_a_group_weighs_what_is_done_alike_however_long_it_takes() -> None:
    """A thing that takes a thousand times as long must not hide the others."""
    group = Group(
        reference={"short": (0.001, 0.001), "long": (1.0, 1.0)},
        candidate={"short": (0.0005, 0.0005), "long": (1.0, 1.0)},
    )
    assert np.exp(group.log_ratio) == pytest.approx(0.5**0.5)
    found = ratio_of([group] * 3)
    assert found.ratio == pytest.approx(0.5**0.5, abs=1e-4)


def test_both_sides_do_everything_in_blocks_whose_order_turns() -> None:
    done: list[str] = []

    def doing(name: str) -> object:
        done.append(name)
        return sum(range(20_000))

    found = list(
        groups({"x": lambda: doing("r")}, {"x": lambda: doing("c")}, 12, seed=3),
    )
    assert len(found) == 12
    assert all(len(group.reference["x"]) == len(group.candidate["x"]) == 2 for group in found)
    blocks = [name for place, name in enumerate(done[4:], 4) if place == 4 or done[place - 1] != name]
    assert {blocks.count("r"), blocks.count("c")} <= set(range(12, 26))  # equal neighbours of two groups join
    assert done.count("r") == done.count("c")
