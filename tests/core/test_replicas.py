"""Several workers of one model: they share its queue, and the death of one is its own."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from tests.core import packages
from tests.core.conftest import Answer, Server, Start
from tests.core.handling import ROW, administer, alive, slowly, workers_of

from mlos.store import Store


def ready(server: Server, model: str) -> list[int]:
    """The workers that have been ready, which the log alone tells."""
    return [
        int(line["worker"])
        for line in server.lines()
        if line["message"] == "model ready" and line["model"] == model
    ]


def test_the_death_of_one_costs_its_own_request_and_the_other_goes_on(start: Start, store: Store) -> None:
    packages.slow(store)
    server = start("--replicas", "2")
    assert server.infer("slow", slowly(1)).status == 200
    server.wait_for(lambda: len(ready(server, "slow")) == 2)
    assert server.metric("mlos_workers_ready", model="slow") == 2
    both = ready(server, "slow")
    resident = [_resident(pid) for pid in both]
    assert server.metric("mlos_worker_memory_bytes", model="slow") > 1.5 * min(resident)
    assert server.row("slow")["memory_bytes"] > 1.5 * min(resident)
    over = threading.Event()
    answers: list[Answer] = []

    def ask() -> None:
        while not over.is_set():
            answers.append(server.infer("slow", slowly(20)))

    clients = [threading.Thread(target=ask) for _ in range(8)]
    for client in clients:
        client.start()
    server.wait_for(lambda: len(answers) > 8 and server.metric("mlos_claimed", model="slow") == 2)
    os.kill(both[0], signal.SIGKILL)
    states: set[str] = set()

    def replaced() -> bool:
        states.add(server.row("slow")["state"])
        return len(ready(server, "slow")) == 3

    server.wait_for(replaced)
    after = len(answers)
    server.wait_for(lambda: len(answers) > after + 8)
    over.set()
    for client in clients:
        client.join()
    assert states == {"READY"}
    lost = [answer for answer in answers if answer.status != 200]
    assert len(lost) <= 1
    assert all(answer.status == 503 and "ended while it computed" in answer.error["message"] for answer in lost)
    assert alive(both[1])
    assert server.metric("mlos_restarts_total", model="slow") == 1
    assert server.metric("mlos_workers_ready", model="slow") == 2
    assert workers_of(server) == 2


def test_unloading_reloading_and_the_end_take_all_of_them(start: Start, store: Store) -> None:
    packages.double(store)
    server = start("--replicas", "3")
    assert server.infer("double", ROW).status == 200
    server.wait_for(lambda: len(ready(server, "double")) == 3)
    assert administer(server, "reload", "double").status == 200
    server.wait_for(lambda: len(ready(server, "double")) == 6 and workers_of(server) == 3)
    assert not any(alive(pid) for pid in ready(server, "double")[:3])
    assert server.infer("double", ROW).status == 200
    assert administer(server, "unload", "double").status == 200
    assert workers_of(server) == 0
    assert server.row("double")["memory_bytes"] is None
    assert administer(server, "load", "double").status == 200
    server.wait_for(lambda: len(ready(server, "double")) == 9)
    assert server.infer("double", ROW).status == 200
    assert server.stop() == 0
    assert not any(alive(pid) for pid in ready(server, "double"))


def test_a_package_that_cannot_be_loaded_fails_once_for_all(start: Start, store: Store) -> None:
    packages.flip_byte(packages.double(store))
    server = start("--replicas", "2")
    assert server.infer("double", ROW).status == 422
    assert server.row("double")["state"] == "FAILED"
    server.wait_for(lambda: workers_of(server) == 0)


def test_memory_is_promised_for_all_of_them(start: Start, store: Store) -> None:
    packages.double(store)
    one = 96 << 20  # what a worker without a model is thought to take, before one has run
    server = start("--replicas", "3", "--memory-budget", str(2 * one))
    refused = server.infer("double", ROW)
    assert refused.status in (503, 507)
    assert "memory" in refused.error["message"]
    server.stop()
    assert start("--memory-budget", str(2 * one)).infer("double", ROW).status == 200


def _resident(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
