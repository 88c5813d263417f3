from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlos.host.child import run_confined
from mlos.host.sandbox import Policy

CHILDREN = Path(__file__).parent / "children"

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run() -> Run:
    """Runs one of the modules in children/ confined; keywords of run_confined, or fields of its request."""

    def run(module: str, policy: Policy | None = None, **given: Any) -> dict[str, Any]:
        env = {"PYTHONPATH": str(CHILDREN), **given.pop("env", {})}
        keywords = {"on_event": given.pop("on_event", None), "timeout": given.pop("timeout", 60)}
        return run_confined(module, given, policy or Policy(), env=env, **keywords)

    return run
