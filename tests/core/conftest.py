"""A real server as a process, on a free port of the loopback, over a store of tiny packages."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.core import packages

from mlos.store import Store

Json = dict[str, Any]


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Json:
        error: Json = self.json["error"]
        return error


@dataclass
class Server:
    process: subprocess.Popen[str]
    url: str
    log: Path
    home: Path
    port: int = field(init=False)

    def __post_init__(self) -> None:
        self.port = int(self.url.rpartition(":")[2])

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def infer(self, model: str, request: Any, **headers: str) -> Answer:
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        return self.request("POST", f"/v1/models/{model}/inference", body, headers)

    def raw(self, data: bytes, timeout: float = 30.0) -> bytes:
        """Send bytes as they are; everything that came back until the server hung up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
            return answer

    def row(self, model: str) -> Json:
        rows: list[Json] = self.get("/v1/models").json["data"]
        return next(row for row in rows if model in (row["id"], row["reference"]))

    def worker(self, model: str) -> int:
        """Process of the model's worker, which is told by the log alone; that is written a little later."""
        deadline = time.monotonic() + 10
        while True:
            found = [
                line["worker"]
                for line in self.lines()
                if line["message"] == "model ready" and line["model"] == model
            ]
            if found or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return int(found[-1])

    def lines(self) -> list[Json]:
        whole = self.log.read_text().rpartition("\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, holds: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.02)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of this name that have these labels."""
        total = 0.0
        for line in self.get("/metrics").body.decode().splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(
                f'{k}="{v}"' in line for k, v in labels.items()
            ):
                total += float(line.rpartition(" ")[2])
        return total

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def environment(home: Path) -> dict[str, str]:
    """Nothing of the tester's own settings; modules that a test puts into ``home/modules`` can be imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLOS_")}
    kept["PYTHONPATH"] = os.pathsep.join(filter(None, (str(home / "modules"), kept.get("PYTHONPATH"))))
    return {
        **kept,
        "MLOS_HOME": str(home),
        "MLOS_CONFIG": str(home / "config.toml"),
        "MLOS_READ_TIMEOUT": "1",
        "MLOS_MAX_TEXT_BYTES": "9000",
        # Hundreds of servers that live for a second, and tests that count processes: test_spare asks for it.
        "MLOS_SPARE_WORKER": "0",
    }


Start = Callable[..., Server]


class Servers:
    def __init__(self) -> None:
        self._running: list[Server] = []

    def start(self, home: Path, *flags: str) -> Server:
        log = home / f"log{len(self._running)}"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "mlos.core.cli", "--port", "0", "--threads", "1", *flags],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env=environment(home),
            )
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), log.read_text()
        server = Server(process, url, log, home)
        self._running.append(server)
        return server

    def close(self) -> None:
        for server in self._running:
            if server.process.poll() is None:
                server.process.kill()
            server.process.wait()
            assert server.process.stdout is not None
            server.process.stdout.close()


@contextmanager
def running(folder: Path, *flags: str) -> Iterator[Server]:
    """One server with this home, killed at the end if it still runs."""
    servers = Servers()
    try:
        yield servers.start(folder, *flags)
    finally:
        servers.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


@pytest.fixture
def store(home: Path) -> Store:
    return Store(home / "store")


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    servers = Servers()
    yield lambda *flags: servers.start(home, *flags)
    servers.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with all tiny models, for the tests of one module that leave it as it was."""
    folder = tmp_path_factory.mktemp("shared")
    store = Store(folder / "store")
    for install in (packages.double, packages.logarithm, packages.slow, packages.embedder):
        install(store)
    with running(folder, "--max-body-bytes", "1000000", "--request-timeout", "20") as server:
        yield server
