"""F04: a signal ends the server in order, what is in flight is answered; a second one ends it now."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.core import packages
from tests.core.conftest import Start
from tests.core.handling import ROW, alive, slowly

from mlos.store import Store


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_soon_and_cleanly(start: Start, store: Store, number: int) -> None:
    packages.double(store)
    server = start()
    assert server.infer("double", ROW).status == 200
    worker = server.worker("double")
    began = time.monotonic()
    assert server.stop(number) == 0
    assert time.monotonic() - began < 2  # the promise of F04, far above what it takes
    assert not alive(worker)
    assert "worker died" not in server.log.read_text()


def test_a_server_ends_while_a_model_loads(start: Start, store: Store) -> None:
    packages.double(store)
    assert start("--model", "double").stop() == 0


def test_what_is_in_flight_is_answered_while_the_server_drains(start: Start, store: Store) -> None:
    packages.slow(store)
    server = start()
    assert server.infer("slow", slowly(1)).status == 200
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.infer, "slow", slowly(500))
        server.wait_for(lambda: server.metric("mlos_in_flight") == 1)
        # As an init system does it: every process of the group gets the signal.
        os.kill(server.worker("slow"), signal.SIGTERM)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.get("/v2/health/ready").status == 503)
        assert "draining" in server.get("/v2/health/ready").json["reason"]
        refused = server.infer("slow", slowly(1))
        assert (refused.status, "retry-after" in refused.headers) == (503, True)
        assert running.result().status == 200
    assert server.process.wait(30) == 0


def test_a_second_signal_ends_it_now(start: Start, store: Store) -> None:
    packages.slow(store)
    server = start()
    assert server.infer("slow", slowly(1)).status == 200
    worker = server.worker("slow")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.infer, "slow", slowly(5000))
        server.wait_for(lambda: server.metric("mlos_in_flight") == 1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for(lambda: server.get("/v2/health/ready").status == 503)
        assert server.stop() == 128 + signal.SIGTERM
        with pytest.raises(OSError):
            running.result()
    server.wait_for(lambda: not alive(worker))


def test_workers_die_with_a_server_that_is_killed(start: Start, store: Store) -> None:
    packages.slow(store)
    server = start()
    assert server.infer("slow", slowly(1)).status == 200
    worker = server.worker("slow")
    server.process.kill()
    server.wait_for(lambda: not alive(worker))
