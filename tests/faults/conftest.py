"""The servers of core's tests, for faults in them."""

from __future__ import annotations

from tests.core.conftest import home, shared, start, store

__all__ = ["home", "shared", "start", "store"]
