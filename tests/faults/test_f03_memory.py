"""F03: thousands of requests of mixed lengths leave memory where it was, and never mix their answers.

Sixteen clients over HTTP, the model computing together what waits. Every text is told from the others by its
words, whose embedding is known. That the check can fail is shown with engines that leak and that mix.
"""

from __future__ import annotations

import http.client
import json
import random
import resource
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.core import packages, records
from tests.core.conftest import Server, Start
from tests.core.packages import WIDTH, WORDS

from mlos.store import Store
from mlos.tune import Batching

CLIENTS = 16
PAYS = Batching(most=8, longest=64)
TABLE = np.random.default_rng(1).normal(size=(len(WORDS), WIDTH)).astype(np.float32)
BROKEN = """
import numpy as np
from mlos.engines.onnxruntime import OnnxRuntimeEngine

class Leaky(OnnxRuntimeEngine):
    name = "broken"
    kept = []

    def run(self, inputs, outputs=None):
        self.kept.append(np.ones(1 << 20, np.uint8))
        return super().run(inputs, outputs)

class Mixing(OnnxRuntimeEngine):
    name = "broken"

    def run(self, inputs, outputs=None):
        return {name: np.roll(rows, 1, axis=0) for name, rows in super().run(inputs, outputs).items()}
"""


@dataclass
class Seen:
    """What a crowd saw: failed requests, answers that were another's, and the bytes that processes held."""

    errors: list[str] = field(default_factory=list)
    mixed: int = 0
    settled: dict[str, int] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)

    @property
    def leaking(self) -> list[str]:
        """The processes that grew by more than what was promised."""
        return [
            name
            for name, before in self.settled.items()
            if self.ended[name] - before > max(0.02 * before, 20e6)
        ]


class Crowd:
    """Clients that keep a connection each and ask for embeddings."""

    def __init__(self, server: Server) -> None:
        self._server, self._own, self._chance = server, threading.local(), random.Random(3)
        self._connections: list[http.client.HTTPConnection] = []
        self._processes = {"server": server.process.pid, "worker": server.worker("embedder")}

    def ask(self, requests: int) -> Seen:
        """So many requests; memory counts from when a fifth of them are answered."""
        seen, texts = Seen(), [self._text() for _ in range(requests)]
        with ThreadPoolExecutor(CLIENTS) as pool:
            for part in (texts[: requests // 5], texts[requests // 5 :]):
                for text, (status, body) in zip(part, pool.map(self._post, part), strict=True):
                    if status != 200:
                        seen.errors.append(f"{status}: {body!r:.200}")
                    elif not np.allclose(json.loads(body)["result"]["embedding"], _embedding(text), atol=1e-5):
                        seen.mixed += 1
                seen.settled = seen.settled or self._memory()
            seen.ended = self._memory()
        for connection in self._connections:
            connection.close()
        return seen

    def _text(self) -> list[int]:
        # Mostly short ones and some long: of one length two texts are alike by chance too often.
        return self._chance.choices(range(2, len(WORDS)), k=int(self._chance.triangular(5, 60, 10)))

    def _post(self, text: Sequence[int]) -> tuple[int, bytes]:
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = http.client.HTTPConnection(
                "127.0.0.1", self._server.port, timeout=60
            )
            self._connections.append(connection)
        body = json.dumps({"text": " ".join(WORDS[word] for word in text)})
        connection.request("POST", "/v1/models/embedder/inference", body)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def _memory(self) -> dict[str, int]:
        return {name: _resident(process) for name, process in self._processes.items()}


def _resident(process: int) -> int:
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()


def _embedding(text: Sequence[int]) -> Any:
    mean = TABLE[list(text)].mean(axis=0)
    return mean / np.linalg.norm(mean)


def crowd(start: Start, store: Store, home: Path, engine: str = "onnxruntime") -> tuple[Server, Crowd]:
    """A server of one model that computes up to eight together, and those who will ask it."""
    records.write(home, packages.embedder(store), engine, batching=PAYS)
    server = start()
    assert server.infer("embedder", {"text": "mlos"}).json["engine"] == engine
    return server, Crowd(server)


def install_broken(home: Path, kind: str) -> None:
    modules = home / "modules"
    described = modules / "broken-1.dist-info"
    described.mkdir(parents=True)
    (modules / "broken.py").write_text(BROKEN)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (described / "entry_points.txt").write_text(f"[mlos.engines.v1]\nbroken = broken:{kind}\n")


@pytest.mark.parametrize("requests", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_crowd_gets_its_own_answers_and_memory_stays(
    start: Start, store: Store, home: Path, requests: int
) -> None:
    server, clients = crowd(start, store, home)
    seen = clients.ask(requests)
    assert (seen.errors, seen.mixed, seen.leaking) == ([], 0, []), seen
    assert server.metric("mlos_requests_total", model="embedder", code="200") == requests + 1
    assert server.metric("mlos_executions_total", model="embedder") < requests, "nothing was computed together"
    assert server.metric("mlos_restarts_total") == 0


def test_a_leak_is_seen(start: Start, store: Store, home: Path) -> None:
    install_broken(home, "Leaky")
    _, clients = crowd(start, store, home, "broken")
    seen = clients.ask(500)
    assert (seen.errors, seen.mixed, seen.leaking) == ([], 0, ["worker"]), seen


def test_answers_that_go_to_others_are_seen(start: Start, store: Store, home: Path) -> None:
    install_broken(home, "Mixing")
    _, clients = crowd(start, store, home, "broken")
    seen = clients.ask(300)
    assert seen.errors == []
    assert seen.mixed > 0
