"""F01: what does not fit is refused before it is loaded, idle models make way, who dies of it dies alone."""

from __future__ import annotations

import os
import re
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.core import packages
from tests.core.conftest import Server, Start
from tests.core.handling import ROW, administer, alive, slowly

from mlos.store import Store

MIB = 1 << 20
X = {"inputs": {"x": [1.0]}}


def ready(server: Server) -> list[str]:
    return [row["id"] for row in server.get("/v1/models").json["data"] if row["state"] == "READY"]


def test_a_model_that_does_not_fit_is_refused_with_what_it_needs(start: Start, store: Store) -> None:
    packages.double(store)
    server = start("--memory-budget", str(50 * MIB))
    for _ in range(2):  # a refusal is no failure: each request asks again
        answer = server.infer("double", ROW)
        assert (answer.status, answer.error["code"]) == (507, "no_room")
        needed, available = (int(number) for number in re.findall(r"\d{6,}", answer.error["message"]))
        assert needed > available == 50 * MIB
    assert not any(line["message"] == "model ready" for line in server.lines())
    assert administer(server, "load", "double").status == 507


def test_the_least_recently_asked_makes_way_if_it_is_idle(start: Start, store: Store) -> None:
    packages.double(store)
    packages.slow(store)
    packages.plus(store, 1, "c1")
    taken = 0
    probe = start()
    for name, request in (("double", ROW), ("slow", slowly(1))):
        assert probe.infer(name, request).status == 200
        taken += probe.row(name)["peak_memory_bytes"]
    probe.stop()
    server = start("--memory-budget", str(taken + 50 * MIB))  # room for two, and not for a third
    assert server.infer("double", ROW).status == 200
    assert server.infer("slow", slowly(1)).status == 200
    assert server.infer("double", ROW).status == 200
    assert sorted(ready(server)) == ["double", "slow"]
    evicted = server.worker("slow")
    assert server.infer("plus", X).status == 200
    assert not alive(evicted)
    assert sorted(ready(server)) == ["double", "plus"]
    assert server.metric("mlos_evictions_total", model="slow") == 1
    assert "made way" in server.row("slow")["reason"]
    # Its next request loads it, and now another is the least recently asked.
    assert server.infer("slow", slowly(1)).status == 200
    assert sorted(ready(server)) == ["plus", "slow"]


def test_what_is_computed_makes_no_way(start: Start, store: Store) -> None:
    packages.double(store)
    packages.slow(store)
    server = start("--memory-budget", str(150 * MIB))
    assert server.infer("slow", slowly(1)).status == 200
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.infer, "slow", slowly(1500))
        server.wait_for(lambda: server.metric("mlos_claimed", model="slow") == 1)
        assert server.infer("double", ROW).status == 507
        assert running.result().status == 200
    assert server.infer("double", ROW).status == 200


def test_a_worker_that_runs_out_of_memory_costs_its_own_request_alone(start: Start, store: Store) -> None:
    packages.double(store)
    packages.plus(store, 1, "c1")
    server = start()
    assert server.infer("double", ROW).status == 200
    assert server.infer("plus", X).status == 200
    bystander, greedy = server.worker("plus"), server.worker("double")
    held = int(Path(f"/proc/{greedy}/statm").read_text().split()[0]) * resource.getpagesize()
    resource.prlimit(greedy, resource.RLIMIT_AS, (held + MIB, held + MIB))
    answer = server.infer("double", {"inputs": {"x": [[1, 2, 3]] * 1_000_000}})
    assert answer.status >= 500
    if alive(greedy):
        os.kill(greedy, signal.SIGKILL)  # as the kernel ends what takes too much
    server.wait_for(lambda: server.infer("double", ROW).status == 200)
    assert server.infer("plus", X).status == 200
    assert alive(bystander)
