"""The real server of the runtime's tests, for their faults too."""

from __future__ import annotations

from tests.core.conftest import home, start, store

__all__ = ["home", "start", "store"]
