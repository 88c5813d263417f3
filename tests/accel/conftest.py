"""Every backend of the channel: each of its tests runs on all of them."""

from __future__ import annotations

import pytest
from tests.accel.handling import Backend

from mlos.accel.userspace import UserspaceFront, UserspaceWorker


@pytest.fixture(params=["userspace"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return {"userspace": (UserspaceFront, UserspaceWorker)}[request.param]
