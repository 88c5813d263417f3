"""F18: a worker that crashes costs others nothing and is replaced, until it has crashed too often."""

from __future__ import annotations

import os
import signal
import threading

from tests.core import packages
from tests.core.conftest import Answer, Start
from tests.core.handling import ROW, slowly

from mlos.store import Store


def test_a_killed_worker_costs_the_other_model_nothing_and_is_replaced(start: Start, store: Store) -> None:
    packages.double(store)
    packages.slow(store)
    server = start()
    assert server.infer("double", ROW).status == 200
    assert server.infer("slow", slowly(1)).status == 200
    victim = server.worker("slow")
    over = threading.Event()
    answers: dict[str, list[Answer]] = {"double": [], "slow": []}

    def load(model: str, request: dict[str, object]) -> None:
        while not over.is_set():
            answers[model].append(server.infer(model, request))

    clients = [threading.Thread(target=load, args=("double", ROW)) for _ in range(2)]
    clients += [threading.Thread(target=load, args=("slow", slowly(20))) for _ in range(4)]
    for client in clients:
        client.start()
    server.wait_for(lambda: len(answers["slow"]) > 4)
    os.kill(victim, signal.SIGKILL)
    server.wait_for(lambda: server.worker("slow") != victim)
    after = len(answers["slow"])
    server.wait_for(lambda: len(answers["slow"]) > after + 4)
    over.set()
    for client in clients:
        client.join()
    assert {answer.status for answer in answers["double"]} == {200}
    lost = [answer for answer in answers["slow"] if answer.status != 200]
    assert len(lost) <= 1
    for answer in lost:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert "ended while it computed" in answer.error["message"]
    assert answers["slow"][-1].status == 200
    assert server.metric("mlos_restarts_total", model="slow") == 1


def test_a_crash_loop_ends_in_failed_with_the_reason(start: Start, store: Store) -> None:
    packages.double(store)
    packages.embedder(store)
    server = start()
    assert server.infer("double", ROW).status == 200
    assert server.infer("embedder", {"text": "mlos"}).status == 200
    seen: set[int] = set()
    turned_away: list[Answer] = []

    def failed() -> bool:
        row = server.row("double")
        if row["state"] == "READY" and (worker := server.worker("double")) not in seen:
            seen.add(worker)
            os.kill(worker, signal.SIGKILL)
        if row["state"] == "RESTARTING" and len(seen) > 1:
            answer = server.infer("double", ROW)
            if answer.status == 503:
                turned_away.append(answer)
        return bool(row["state"] == "FAILED")

    server.wait_for(failed, 60)
    assert len(seen) == 5
    assert "5 workers in a row" in server.row("double")["reason"]
    assert "SIGKILL" in server.row("double")["reason"]
    assert turned_away
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in turned_away)
    assert server.infer("double", ROW).status == 503
    assert server.infer("embedder", {"text": "mlos"}).status == 200
