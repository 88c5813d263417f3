"""The servers of core's tests and the confined children of host's, for attacks on them."""

from __future__ import annotations

from tests.core.conftest import home, shared, start, store
from tests.host.conftest import run

__all__ = ["home", "run", "shared", "start", "store"]
