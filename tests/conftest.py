"""What tests of several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.installed import Installed
from tests.small import Small


def shared(folders: pytest.TempPathFactory, name: str) -> Path:
    """A folder for the whole run, also where several processes share it."""
    base = folders.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small variants of the catalogue's models, made when they are asked for."""
    return Small(shared(tmp_path_factory, "small"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Models as the real program packages them, made when they are asked for."""
    return Installed(shared(tmp_path_factory, "installed"))
