"""Answers in parts: as they are made, whole at the end, and never for somebody who has left (F15, F16)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.core import packages
from tests.core.conftest import Json, Server, Start, running
from tests.core.plugins import install_counting

from mlos.store import Store

LONG = 1_000_000
"""A count that would outlast every time-out of these tests."""


def install_counter(home: Path) -> None:
    install_counting(home)
    packages.double(Store(home / "store"), "counter", tasks=("counting",))


@pytest.fixture(scope="module")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a model that counts, for the tests that leave it idle."""
    folder = tmp_path_factory.mktemp("counter")
    install_counter(folder)
    with running(folder, "--request-timeout", "3600") as server:
        yield server


@pytest.fixture
def own(start: Start, home: Path) -> Server:
    """The same, for a test that ends it or its worker."""
    install_counter(home)
    return start("--request-timeout", "3600")


def events(body: bytes) -> list[tuple[str, Json]]:
    """Server-sent events as pairs of name and data."""
    found = []
    for block in body.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((fields.get("event", ""), json.loads(fields["data"])))
    return found


def ask_raw(server: Server, request: Any) -> socket.socket:
    """A connection on which a request has been sent and its first part has come."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    body = json.dumps(request).encode()
    head = f"POST /v1/models/counter/inference HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    came = b""
    while b"event: part" not in came:
        piece = connection.recv(65536)
        assert piece, came
        came += piece
    return connection


def test_parts_come_first_and_the_whole_answer_last(counter: Server) -> None:
    before = counter.metric("mlos_tokens_total", model="counter", kind="completion")
    answer = counter.infer("counter", {"prompt": "4", "stream": True})
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (200, "text/event-stream")
    *parts, last = events(answer.body)
    assert parts == [("part", {"text": f"{number} "}) for number in range(4)]
    assert last[0] == "answer"
    whole = counter.infer("counter", {"prompt": "4"}).json
    for changing in ("timings_ms", "request_id"):
        assert set(last[1].pop(changing)) == set(whole.pop(changing)) or changing == "request_id"
    assert last[1] == whole
    assert whole["result"] == {"text": "0 1 2 3 ", "finish_reason": "stop"}
    assert counter.metric("mlos_tokens_total", model="counter", kind="completion") == before + 8


def test_what_is_wrong_from_the_start_is_no_stream(counter: Server) -> None:
    answer = counter.infer("counter", {"prompt": "many", "stream": True})
    assert answer.status == 400
    assert answer.error["field"] == "prompt"
    assert counter.infer("nobody", {"prompt": "1", "stream": True}).status == 404


def test_what_goes_wrong_later_ends_the_stream_and_says_so(counter: Server) -> None:
    before = counter.metric("mlos_requests_total", model="counter", code="500")
    answer = counter.infer("counter", {"prompt": "9", "stream": True, "parameters": {"fail_at": 2}})
    names = [name for name, _ in events(answer.body)]
    assert names == ["part", "part", "error"]
    assert events(answer.body)[-1][1]["error"]["message"] == "counted too far"
    assert counter.metric("mlos_requests_total", model="counter", code="500") == before + 1


def test_f16_a_client_that_leaves_frees_the_worker(counter: Server) -> None:
    before = counter.metric("mlos_requests_total", model="counter", code="499")
    connection = ask_raw(counter, {"prompt": str(LONG), "stream": True, "parameters": {"pause": 0.01}})
    assert counter.metric("mlos_claimed", model="counter") == 1
    connection.close()
    # The next request would wait for hours if the worker went on counting for nobody.
    assert counter.infer("counter", {"prompt": "2"}).json["result"]["text"] == "0 1 "
    counter.wait_for(lambda: counter.metric("mlos_requests_total", model="counter", code="499") == before + 1)
    assert counter.metric("mlos_restarts_total", model="counter") == 0


def test_f16_a_client_that_leaves_before_the_first_part_frees_the_worker_too(counter: Server) -> None:
    first = ask_raw(counter, {"prompt": str(LONG), "stream": True, "parameters": {"pause": 0.01}})
    with socket.create_connection(("127.0.0.1", counter.port), timeout=30) as second:
        body = json.dumps({"prompt": str(LONG), "stream": True}).encode()
        second.sendall(
            b"POST /v1/models/counter/inference HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
            + body
        )
        counter.wait_for(lambda: counter.metric("mlos_queue_depth", model="counter") == 1)
    counter.wait_for(lambda: counter.metric("mlos_queue_depth", model="counter") == 0)
    first.close()
    assert counter.infer("counter", {"prompt": "1"}).status == 200


def test_f15_a_deadline_holds_while_parts_come(start: Start, home: Path) -> None:
    install_counter(home)
    server = start("--request-timeout", "2")
    assert server.infer("counter", {"prompt": "1"}).status == 200  # it is loaded
    answer = server.infer("counter", {"prompt": str(LONG), "stream": True, "parameters": {"pause": 0.01}})
    name, data = events(answer.body)[-1]
    assert (name, data["error"]["code"]) == ("error", "deadline")
    assert server.infer("counter", {"prompt": "1"}).status == 200
    assert server.metric("mlos_restarts_total", model="counter") == 0
    assert server.metric("mlos_requests_total", model="counter", code="504") == 1


def test_a_worker_killed_in_the_middle_ends_the_stream_with_an_error(own: Server) -> None:
    connection = ask_raw(own, {"prompt": str(LONG), "stream": True, "parameters": {"pause": 0.01}})
    os.kill(own.worker("counter"), signal.SIGKILL)
    came = b""
    while b"event: error" not in came:
        piece = connection.recv(65536)
        assert piece, came[-2000:]
        came += piece
    connection.close()
    assert own.infer("counter", {"prompt": "1"}).status == 200


def test_a_drain_lets_a_stream_finish(own: Server) -> None:
    connection = ask_raw(own, {"prompt": "60", "stream": True, "parameters": {"pause": 0.02}})
    assert own.stop() == 0
    came = b""
    while piece := connection.recv(65536):
        came += piece
    connection.close()
    assert b"event: answer" in came


def test_what_a_client_sends_behind_a_stream_is_not_answered_inside_it(counter: Server) -> None:
    connection = ask_raw(counter, {"prompt": "40", "stream": True, "parameters": {"pause": 0.02}})
    connection.sendall(b"\xff\xfe garbage\r\n\r\n")
    came = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            came += piece
    connection.close()
    assert b"HTTP/1.1" not in came
    assert counter.infer("counter", {"prompt": "1"}).status == 200


def test_a_stream_that_outlasts_the_drain_ends_with_an_error(start: Start, home: Path) -> None:
    install_counter(home)
    (home / "config.toml").write_text("drain_timeout = 1.0\n")
    server = start("--request-timeout", "3600")
    connection = ask_raw(server, {"prompt": str(LONG), "stream": True, "parameters": {"pause": 0.01}})
    assert server.stop() == 0
    came = b""
    while piece := connection.recv(65536):
        came += piece
    connection.close()
    assert b"event: error" in came
    assert not [line for line in server.lines() if "traceback" in line]


def test_who_asks_and_never_reads_is_cut_off(counter: Server) -> None:
    with socket.create_connection(("127.0.0.1", counter.port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
        answers = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(1 << 20):
                answers += piece
    assert answers.count(b"HTTP/1.1 200") < 50_000
    assert counter.get("/health").status == 200
