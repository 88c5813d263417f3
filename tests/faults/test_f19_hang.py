"""F19: a worker that hangs is ended and replaced."""

from __future__ import annotations

import os
import signal

from tests.core import packages
from tests.core.conftest import Start
from tests.core.handling import ROW, administer, alive

from mlos.store import Store


def test_a_worker_that_hangs_is_ended_and_replaced(start: Start, store: Store) -> None:
    packages.double(store)
    server = start("--request-timeout", "2")
    assert administer(server, "load", "double").status == 200
    hung = server.worker("double")
    os.kill(hung, signal.SIGSTOP)
    assert server.infer("double", ROW).status == 504
    server.wait_for(lambda: not alive(hung))
    server.wait_for(lambda: server.infer("double", ROW).status == 200)
    assert any("overran" in str(line.get("reason")) for line in server.lines())
