"""A model is loaded into a running server again and again; what it answers then is held to the right answer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.figures import alternate
from benchmarks.sides import Mlos, Served, Side
from benchmarks.wire import Asked
from benchmarks.workloads import WORKLOADS, package_of, requests_of
from tests.benchmarks.test_comparing import NO_PACKAGE, asked, side

from benchmarks import loading
from mlos.errors import ParityError, UsageError
from mlos.tune.paired import ratio_of

TRIVIAL = WORKLOADS["trivial"]


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLOS_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


class Running:
    """Our server, which is up already."""

    name, title, ours = "mlos", "mlos_core", True
    configuration: tuple[str, ...] = ()
    speaks = Mlos.speaks

    def __init__(self, served: Served) -> None:
        self._served = served

    def prepare(self) -> str:
        return ""

    def serving(self, package: Any, settings: Any) -> Any:
        return contextlib.nullcontext(self._served)


@pytest.fixture(scope="module")
def running(home: None) -> Iterator[Side]:
    with Mlos("mlos").serving(package_of(TRIVIAL), {}) as served:
        yield Running(served)


def wrong(one: Asked) -> Asked:
    return Asked(one.tensors, {name: array + 1 for name, array in one.outputs.items()})


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
    assert found["ratio"]["n"] == 2  # type: ignore[index]
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
