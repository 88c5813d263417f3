"""A live server for clients that others wrote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.core import packages
from tests.core.conftest import Server, Servers, home, start, store

from mlos.store import Store

__all__ = [
    "home",
    "served",
    "start",
    "store",
]  # all but one are another room's


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clients")
    store = Store(folder / "store")
    packages.double(store)
    packages.embedder(store)
    servers = Servers()
    yield servers.start(folder, "--grpc-port", "0")
    servers.close()
