from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest

from mlos.errors import WorkerError
from mlos.validation import load
from mlos.validation.asking import ask

Reply = Callable[[dict[str, Any]], tuple[int, bytes]]
GOLDEN: list[dict[str, Any]] = [
    {"text": "one two three four"},
    {"texts": ["five six", "seven"]},
    {"text": "eight"},
]


def answer(**changes: Any) -> bytes:
    whole = {
        "digest": "ab",
        "task": "embeddings",
        "result": {"embedding": [0.5], "dimensions": 1},
        "engine": "onnxruntime",
        "precision": "fp32",
        "mode": "userspace",
        "timings_ms": {"queue": 0.5, "compute": 2.0},
    }
    return json.dumps({key: value for key, value in (whole | changes).items() if value is not None}).encode()


@contextmanager
def serving(reply: Reply) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on loopback that answers by ``reply``, and what it was asked."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            status, content = reply(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Server-Timing", "read;dur=0.25, total;dur=9, compute;dur=2.0")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "WINDOW_SECONDS", 0.02)
    monkeypatch.setattr(load, "TIMED_SECONDS", 0.2)


def test_an_answer_carries_every_stage_that_the_server_reported() -> None:
    with serving(lambda body: (200, answer())) as (url, asked), httpx2.Client() as client:
        got = ask(client, url, {"text": "hello"})
    assert asked == [{"text": "hello"}]
    assert got.answer.result == {"embedding": [0.5], "dimensions": 1}
    assert got.stages_ms == {"read": 0.25, "queue": 0.5, "compute": 2.0}
    assert got.taken_ms > 0


@pytest.mark.parametrize(
    ("status", "content", "said"),
    [
        (500, b'{"message": "out of order"}', "500.*out of order"),
        (302, b"", "302"),
        (200, b"<html>", "not a V1 response"),
        (200, b"\xff\xfe", "not a V1 response"),
        (200, b"[]", "not a V1 response"),
        (200, answer(timings_ms=None), "timings_ms"),
        (200, answer(timings_ms={"queue": "long"}), "timings_ms"),
        (200, answer(digest=7), "digest"),
    ],
)
def test_an_answer_that_is_none_says_what_is_wrong(status: int, content: bytes, said: str) -> None:
    with (
        serving(lambda body: (status, content)) as (url, _),
        httpx2.Client() as client,
        pytest.raises(WorkerError, match=said),
    ):
        ask(client, url, {"text": "hello"})


def test_nobody_there_is_an_error_like_any_other() -> None:
    with serving(lambda body: (200, answer())) as (url, _):
        pass
    with httpx2.Client() as client, pytest.raises(WorkerError, match="ConnectError"):
        ask(client, url, {"text": "hello"})


def test_every_round_asks_for_the_same_work_and_checks_some_of_it() -> None:
    with serving(lambda body: (200, answer())) as (url, asked):
        found = load.single_stream(url, GOLDEN, seed=1)
    assert found.errors == 0
    assert len(found.samples_ms) == len(found.stages_ms) >= 3
    assert len(found.answers) >= 0.01 * len(found.samples_ms)
    for first in range(0, len(asked) - 2, 3):
        words = [body.get("text", " ".join(body.get("texts", []))) for body in asked[first : first + 3]]
        assert sorted(" ".join(words).split()) == sorted(
            ["one", "two", "three", "four", "five", "six", "seven", "eight"]
        )
    assert any(body not in GOLDEN for body in asked), "nothing was varied"
    assert any(body in GOLDEN for body in asked), "nothing was checked"


def test_the_same_seed_asks_the_same_questions() -> None:
    orders = []
    for seed in (5, 5, 6):
        with serving(lambda body: (200, answer())) as (url, asked):
            load.single_stream(url, GOLDEN, seed=seed)
        orders.append(asked[:12])
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_a_server_that_fails_is_not_asked_for_long() -> None:
    with serving(lambda body: (503, b"full")) as (url, asked):
        found = load.single_stream(url, GOLDEN, seed=1)
    assert found.errors == load.MAX_ERRORS + 1 == len(asked)
    assert found.first_error is not None
    assert "503: full" in found.first_error
    assert found.samples_ms == []


def test_a_slow_model_is_stopped_when_the_tier_s_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "BUDGET_SECONDS", 0.6)
    monkeypatch.setattr(load, "WARMUP_SECONDS", 0.3)

    def slowly(body: dict[str, Any]) -> tuple[int, bytes]:
        time.sleep(0.2)
        return 200, answer()

    with serving(slowly) as (url, asked):
        found = load.single_stream(url, GOLDEN, seed=1)
    assert len(asked) <= 5
    assert not found.stable
    assert found.answers or not found.samples_ms


def test_a_varied_request_holds_the_same_words() -> None:
    request = {"texts": ["a b c d e f g h", "The [MASK] sleeps."], "parameters": {"top_k": 3}}
    varied = load.varied(request, random.Random(2))
    assert varied != request
    assert [sorted(text.split()) for text in varied["texts"]] == [sorted(t.split()) for t in request["texts"]]
    assert varied["parameters"] == request["parameters"]
