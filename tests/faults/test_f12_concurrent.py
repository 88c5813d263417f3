"""F12: of loads and unloads that come at once the last one counts, and nothing is left hanging."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.core import packages
from tests.core.conftest import Server, Start
from tests.core.handling import ROW, administer, workers_of

from mlos.store import Store

CLIENTS, ROUNDS = 6, 8


def has_workers(server: Server, number: int) -> bool:
    return workers_of(server) == number


def test_the_last_of_many_loads_and_unloads_counts(start: Start, store: Store) -> None:
    packages.double(store)
    server = start()
    assert server.infer("double", ROW).status == 200
    chance = random.Random(12)

    def disturb(_: int) -> set[int]:
        verbs = chance.choices(("load", "unload", "reload", "ask"), k=ROUNDS)
        return {
            (server.infer("double", ROW) if verb == "ask" else administer(server, verb, "double")).status
            for verb in verbs
        }

    with ThreadPoolExecutor(CLIENTS) as pool:
        for last, state in (("unload", "STOPPED"), ("load", "READY"), ("unload", "STOPPED")):
            assert set.union(*pool.map(disturb, range(CLIENTS))) <= {200, 503}
            assert administer(server, last, "double").json["state"] == state
            assert server.row("double")["state"] == state
            expected = 1 if state == "READY" else 0
            # One that a reload has replaced may still be ending.
            server.wait_for(partial(has_workers, server, expected))
            assert server.infer("double", ROW).status == (200 if last == "load" else 503)
    assert not [line for line in server.lines() if "traceback" in line]


def test_a_load_that_is_overtaken_by_an_unload_says_so(start: Start, store: Store) -> None:
    packages.double(store)
    server = start()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(administer, server, "load", "double")
        server.wait_for(lambda: server.row("double")["state"] == "LOADING")
        assert administer(server, "unload", "double").json["state"] == "STOPPED"
        answer = loading.result()
    assert (answer.status, "unloaded while" in answer.error["message"]) == (503, True)
    server.wait_for(lambda: workers_of(server) == 0)
