"""Many clients at once, on every protocol, each with numbers of its own: none gets another's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc  # type: ignore[import-untyped]  # it ships no types
import tritonclient.http  # type: ignore[import-untyped]  # likewise
from tests.core import packages
from tests.core.conftest import Server, Servers
from tests.core.test_grpc import address

from mlos.store import Store

CLIENTS, REQUESTS = 16, 30


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("crowd")
    packages.double(Store(folder / "store"))
    servers = Servers()
    yield servers.start(folder, "--grpc-port", "0")
    servers.close()


def ask_v1(server: Server) -> Callable[[Any], Any]:
    return lambda rows: shared_answer(server.infer("double", {"inputs": {"x": rows.tolist()}}).json)


def shared_answer(told: Any) -> Any:
    return np.array(told["result"]["y"], np.float32)


def ask_triton(library: Any, where: str, **raw: bool) -> Callable[[Any], Any]:
    client = library.InferenceServerClient(where)

    def ask(rows: Any) -> Any:
        given = library.InferInput("x", list(rows.shape), "FP32").set_data_from_numpy(rows, **raw)
        wanted = library.InferRequestedOutput("y", **raw)
        return client.infer("double", [given], outputs=[wanted]).as_numpy("y")

    return ask


def test_nobody_is_answered_with_anothers_numbers(served: Server) -> None:
    rest, calls = served.url.removeprefix("http://"), address(served)

    def talk(client: int) -> int:
        chance = random.Random(client)
        ways = [
            ask_v1(served),
            ask_triton(tritonclient.http, rest, binary_data=True),
            ask_triton(tritonclient.http, rest, binary_data=False),
            ask_triton(tritonclient.grpc, calls),
        ]
        right = 0
        for number in range(REQUESTS):
            # Up to 240 KB, so that some cross in packets and some in memory files.
            rows = np.full((chance.choice((1, 7, 300, 20_000)), 3), client * REQUESTS + number, np.float32)
            rows[:, 1] = np.arange(len(rows))
            way = ways[0 if len(rows) < 1000 and number % 4 == 0 else 1 + number % 3]
            right += int(np.array_equal(way(rows), 2 * rows))
        return right

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(talk, range(CLIENTS))) == [REQUESTS] * CLIENTS
    assert served.metric("mlos_requests_total", model="double", code="200") == CLIENTS * REQUESTS
    assert served.metric("mlos_restarts_total", model="double") == 0
