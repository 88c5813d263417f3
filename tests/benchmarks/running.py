"""What the tests of benchmark programs share: a home of their own, and our server, which is up already."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from benchmarks.sides import Mlos, Served, Side
from benchmarks.wire import Asked
from benchmarks.workloads import WORKLOADS, package_of

TRIVIAL = WORKLOADS["trivial"]


@pytest.fixture(scope="module")
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
