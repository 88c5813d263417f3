"""What tests of several rooms share."""

from __future__ import annotations

import pytest
from tests.installed import Installed
from tests.small import Small


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small variants of the catalogue's models, made when they are asked for."""
    return Small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Models as the real program packages them, made when they are asked for."""
    return Installed(tmp_path_factory.mktemp("installed"))
