"""F16: who leaves frees the worker at once; of one who reads a stream, ``tests/core/test_stream.py`` tells."""

from __future__ import annotations

import json
import socket

from tests.core import packages
from tests.core.conftest import Server, Start
from tests.core.handling import administer, slowly

from mlos.store import Store

HOURS = 10_000_000
"""Of work: more than any time-out of these tests."""


def serving(start: Start, store: Store, seconds: int) -> Server:
    packages.slow(store)
    server = start("--request-timeout", str(seconds))
    assert administer(server, "load", "slow").status == 200
    return server


def test_a_client_that_leaves_while_its_answer_is_computed_frees_the_worker(start: Start, store: Store) -> None:
    server = serving(start, store, 3600)
    body = json.dumps(slowly(HOURS)).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = f"POST /v1/models/slow/inference HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        server.wait_for(lambda: server.metric("mlos_claimed", model="slow") == 1)
    server.wait_for(lambda: server.metric("mlos_claimed", model="slow") == 0)
    assert server.infer("slow", slowly(1)).status == 200
    assert server.metric("mlos_requests_total", model="slow", code="499") == 1
    assert server.metric("mlos_restarts_total", model="slow") == 0


def test_so_does_one_whose_time_is_over(start: Start, store: Store) -> None:
    server = serving(start, store, 2)
    assert server.infer("slow", slowly(HOURS)).status == 504
    server.wait_for(lambda: server.metric("mlos_claimed", model="slow") == 0)
    assert server.infer("slow", slowly(1)).status == 200
    assert server.metric("mlos_restarts_total", model="slow") == 0
