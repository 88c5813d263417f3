"""Several runs at once in one worker: each in its own stream, none held up behind another."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.core import packages, records
from tests.core.conftest import Server, Start
from tests.core.handling import administer, slowly, workers_of
from tests.small import Small

from mlos.store import Store

HOURS = 10_000_000


def serving(start: Start, store: Store, home: Path, seconds: int) -> Server:
    records.write(home, packages.slow(store), "onnxruntime", streams=2)
    server = start("--request-timeout", str(seconds))
    assert administer(server, "load", "slow").status == 200
    return server


def test_one_who_asks_for_little_is_answered_beside_one_who_asks_for_much(
    start: Start, store: Store, home: Path
) -> None:
    server = serving(start, store, home, 5)
    (row,) = server.get("/version").json["models"]
    assert (row["threads"], row["streams"], workers_of(server)) == (1, 2, 1)
    assert "2 runs at once take 0.500" in row["chosen"]
    assert server.metric("mlos_model_info", streams="2") == 1
    with ThreadPoolExecutor(1) as pool:
        much = pool.submit(server.infer, "slow", slowly(HOURS))
        server.wait_for(lambda: server.metric("mlos_claimed", model="slow") == 1)
        for number in range(5):
            little = server.infer("slow", {"inputs": {"n": 1, "x": [number]}})
            assert little.json["result"]["y"] == [number]
        assert not much.done()
        # Whose time is over leaves its stream, and the other goes on.
        assert much.result().status == 504
    server.wait_for(lambda: server.metric("mlos_claimed", model="slow") == 0)
    assert server.infer("slow", slowly(1)).status == 200
    assert server.metric("mlos_restarts_total", model="slow") == 0


def test_a_worker_that_dies_costs_what_its_streams_computed_and_no_more(
    start: Start, store: Store, home: Path
) -> None:
    server = serving(start, store, home, 60)
    with ThreadPoolExecutor(3) as pool:
        lost = [pool.submit(server.infer, "slow", slowly(HOURS)) for _ in range(2)]
        server.wait_for(lambda: server.metric("mlos_claimed", model="slow") == 2)
        waits = pool.submit(server.infer, "slow", slowly(1))
        server.wait_for(lambda: server.metric("mlos_queue_depth", model="slow") == 1)
        os.kill(server.worker("slow"), signal.SIGKILL)
        assert [each.result().status for each in lost] == [503, 503]
        assert waits.result().status == 200
    assert workers_of(server) == 1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_texts_are_answered_in_streams_as_they_are_alone(
    start: Start, store: Store, home: Path, small: Small, engine: str
) -> None:
    records.write(home, small.install("bert", store), engine, streams=2)
    server = start()
    texts = [" ".join(["river", "stone", "cloud"] * (1 + number % 7)) + f" {number}" for number in range(40)]
    alone = [server.infer("bert", {"text": text}) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        beside = list(pool.map(lambda text: server.infer("bert", {"text": text}), texts))
    for one, other in zip(alone, beside, strict=True):
        assert (one.status, other.status) == (200, 200)
        wanted, got = (np.array(each.json["result"]["embedding"]) for each in (one, other))
        np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=1e-3)
