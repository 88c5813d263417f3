"""A worker is started before it is needed: the next load, or the next life, is its."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from tests.core import packages
from tests.core.conftest import Server, Start
from tests.core.handling import administer, alive

from mlos.core.spare import QUIET_SECONDS
from mlos.host.process import children_of
from mlos.store import Store

DOUBLE = {"inputs": {"x": [[1, 2, 3]]}}


def spare_of(server: Server, *others: int) -> int:
    """The process that waits, once there is one: a child that is none of ``others``."""
    server.wait_for(lambda: len(set(children_of(server.process.pid)) - set(others)) == 1)
    (spare,) = set(children_of(server.process.pid)) - set(others)
    return spare


def test_the_one_that_waits_becomes_the_next_worker_and_another_takes_its_place(
    start: Start, store: Store
) -> None:
    packages.double(store)
    server = start("--spare-worker")
    first = spare_of(server)
    assert server.row("double")["state"] != "READY"
    assert server.infer("double", DOUBLE).status == 200
    assert server.worker("double") == first
    second = spare_of(server, first)
    os.kill(first, signal.SIGKILL)
    server.wait_for(lambda: server.metric("mlos_loads_total", reason="restart") == 1)
    assert server.infer("double", DOUBLE).status == 200
    assert server.worker("double") == second
    third = spare_of(server, second)
    assert administer(server, "unload", "double").status == 200
    assert not alive(second)
    assert alive(third)


def test_one_that_has_died_is_not_missed(start: Start, store: Store) -> None:
    packages.double(store)
    server = start("--spare-worker")
    spare = spare_of(server)
    os.kill(spare, signal.SIGKILL)
    server.wait_for(lambda: not alive(spare))
    assert server.infer("double", DOUBLE).status == 200
    assert server.worker("double") != spare
    assert not [line for line in server.lines() if line["message"] == "worker died"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_the_server_however_that_ends(start: Start, store: Store, number: int) -> None:
    packages.double(store)
    server = start("--spare-worker")
    spare = spare_of(server)
    server.stop(number)
    server.wait_for(lambda: not alive(spare))


def test_none_waits_where_none_is_wanted(start: Start, store: Store) -> None:
    packages.double(store)
    server = start("--no-spare-worker")
    assert server.infer("double", DOUBLE).status == 200
    time.sleep(2 * QUIET_SECONDS)  # nothing tells that nothing comes
    assert children_of(server.process.pid) == (server.worker("double"),)


def test_it_has_nothing_of_the_server_s_own(start: Start, store: Store) -> None:
    packages.double(store)
    environment = Path(f"/proc/{spare_of(start('--spare-worker'))}/environ").read_bytes()
    assert b"MLOS_" not in environment
    assert b"HOME=/nonexistent\0" in environment
