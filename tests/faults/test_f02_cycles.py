"""F02: a hundred loads and unloads leave the server's memory where it was, and no process behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.core import packages
from tests.core.conftest import Server, Start
from tests.core.handling import ROW, administer, alive, workers_of

from mlos.host.process import resident_bytes
from mlos.store import Store

CYCLES, SETTLED = 100, 20

LEAKY = """
import sys

if "mlos.core.cli" in sys.orig_argv:
    kept = []

    def leak(event, arguments):
        if event == "socket.__new__":  # each worker has a pair of them
            kept.append(b"leak" * (1 << 18))

    sys.addaudithook(leak)
"""


def cycle(server: Server, times: int) -> list[int]:
    """Memory of the server after each of so many loads and unloads."""
    found = []
    for _ in range(times):
        assert administer(server, "load", "double").status == 200
        assert server.infer("double", ROW).status == 200
        assert administer(server, "unload", "double").status == 200
        assert workers_of(server) == 0
        found.append(resident_bytes(server.process.pid) or 0)
    return found


def grown(memory: list[int]) -> bool:
    settled = memory[0]
    return memory[-1] - settled > max(0.02 * settled, 20e6)


def test_an_unloaded_model_has_no_process_and_its_memory_is_back(start: Start, store: Store) -> None:
    packages.double(store)
    server = start()
    cycle(server, 3)
    assert administer(server, "load", "double").status == 200
    worker = server.worker("double")
    assert alive(worker)
    assert server.row("double")["memory_bytes"] > 1 << 20
    assert administer(server, "unload", "double").status == 200
    assert not alive(worker)
    assert server.row("double")["memory_bytes"] is None
    answer = server.infer("double", ROW)
    assert (answer.status, "unloaded" in answer.error["message"]) == (503, True)
    assert "/admin/models/double/load" in answer.error["hint"]
    assert server.get("/v2/models/double/ready").status == 503
    assert server.get("/v2/health/ready").status == 503
    assert administer(server, "load", "double").status == 200
    assert server.infer("double", ROW).status == 200


@pytest.mark.slow
def test_a_hundred_cycles_leave_memory_where_it_was(start: Start, store: Store) -> None:
    packages.double(store)
    server = start()
    memory = cycle(server, CYCLES)
    assert not grown(memory[SETTLED:]), memory


@pytest.mark.slow
def test_a_leak_fails_the_check(start: Start, store: Store, home: Path) -> None:
    """A server that keeps two MiB of each worker is found out by the same check."""
    packages.double(store)
    (home / "modules").mkdir()
    (home / "modules" / "sitecustomize.py").write_text(LEAKY)
    assert grown(cycle(start(), 20))
