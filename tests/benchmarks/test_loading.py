"""A model is loaded into a running server again and again; what it answers then is held to the right answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.figures import alternate
from benchmarks.sides import Side
from benchmarks.workloads import requests_of
from tests.benchmarks.running import home, running, wrong
from tests.benchmarks.test_comparing import NO_PACKAGE, asked, side

from benchmarks import loading
from mlos.errors import ParityError, UsageError
from mlos.tune.paired import ratio_of

__all__ = ["home", "running"]


def test_blocks_stand_mirrored_in_groups_and_the_ratio_is_of_their_figures() -> None:
    order: list[str] = []

    def block(name: str, figure: float) -> Callable[[], float]:
        def run() -> float:
            order.append(name)
            return figure

        return run

    ratio = ratio_of(list(alternate(block("a", 2.0), block("b", 6.0), 20, 0)))
    assert (ratio.ratio, ratio.n, ratio.floor) == (3.0, 20, 0.0)
    groups = {"".join(order[at : at + 4]) for at in range(0, 80, 4)}
    assert groups == {"abba", "baab"}


def test_a_model_is_loaded_asked_and_unloaded_again_and_again(running: Side) -> None:
    found = loading.compare(running, running, "trivial", 2, 0, lambda said: None)
    assert found["ratio"]["n"] == 2
    json.dumps(found)


def test_a_wrong_answer_after_a_load_ends_the_run(running: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = requests_of
    monkeypatch.setattr(loading, "requests_of", lambda *given: [wrong(one) for one in drawn(*given)])
    with pytest.raises(ParityError, match="is wrong"):
        loading.compare(running, running, "trivial", 2, 0, lambda said: None)


def test_a_server_without_a_repository_cannot_be_asked_to_load(tmp_path: Path) -> None:
    with (
        side(tmp_path, "right").serving(NO_PACKAGE, {}) as served,
        pytest.raises(UsageError, match="cannot be asked to load"),
    ):
        loading.Loading("right", served, [asked()])
