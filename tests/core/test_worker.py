"""What a worker can and cannot do, seen from inside by an engine that tries (T19), and what it imports."""

from __future__ import annotations

import errno
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.core import packages
from tests.core.conftest import Start

from mlos.accel import Job
from mlos.core.worker import _complete
from mlos.core.worker_protocol import Answer
from mlos.errors import MlosError, PayloadTooLargeError
from mlos.store import Store

ENGINE = """
import ctypes, os, resource, socket
import numpy as np

def number(attempt):
    try:
        attempt()
    except OSError as error:
        return error.errno
    return 0

class Curious:
    name = "curious"
    formats = frozenset({"pytorch"})
    version = "1"

    @classmethod
    def open(cls, folder, artifact, threads):
        self = cls()
        self.folder = folder
        return self

    def run(self, inputs, outputs=None):
        if not inputs["port"][0]:
            return {"found": np.zeros(1, np.int64)}  # warming up
        port, canary = int(inputs["port"][0]), bytes(inputs["canary"].astype(np.uint8)).decode()
        attempts = {
            "connect": lambda: socket.create_connection(("127.0.0.1", port), 5),
            "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "read": lambda: open(canary).close(),
            "list": lambda: os.listdir(os.path.dirname(canary)),
            "write": lambda: open(os.path.dirname(canary) + "/planted", "w").close(),
            "change": lambda: open(os.path.join(self.folder, "model.onnx"), "r+").close(),
            "execve": lambda: os.execv("/bin/true", ["true"]),
            "fork": os.fork,
            "signal": lambda: os.kill(os.getppid(), 0),
            "own": lambda: open(os.path.join(self.folder, "model.onnx"), "rb").close(),
        }
        privileges = next(line for line in open("/proc/self/status") if line.startswith("NoNewPrivs"))
        environment = [key for key in os.environ if "TOKEN" in key or "SECRET" in key]
        found = [number(attempt) for attempt in attempts.values()]
        found += [int(privileges.split()[1]), len(environment), resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
        return {"found": np.array(found, np.int64)}
"""


def test_a_curious_engine_gets_nowhere(
    start: Start, store: Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    modules = home / "modules"
    described = modules / "curious-1.dist-info"
    described.mkdir(parents=True)
    (modules / "curious.py").write_text(ENGINE)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: curious\nVersion: 1\n")
    (described / "entry_points.txt").write_text("[mlos.engines.v1]\ncurious = curious:Curious\n")
    canary = home / "canary"
    canary.write_text("secret")
    package = packages.curious(store)
    server = start()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        request = {"inputs": {"port": [port], "canary": list(str(canary).encode())}}
        answer = server.infer("curious", request)
        # The worker lives on after a refused execve: another answer comes from the same process.
        assert server.infer("curious", request).json["result"] == answer.json["result"]
    assert answer.status == 200, answer.body
    *tried, privileges, tokens, files = answer.json["result"]["found"]
    names = ("connect", "udp", "read", "list", "write", "change", "execve", "fork", "signal", "own")
    found = dict(zip(names, tried, strict=True))
    assert found.pop("own") == 0
    refused = {errno.EPERM, errno.EACCES}
    signalled = found.pop("signal")
    assert set(found.values()) <= refused, found
    assert signalled in {0, *refused}  # kernels before Landlock's sixth version cannot refuse signals
    assert (privileges, tokens) == (1, 0)
    assert files <= 256
    assert not (home / "planted").exists()
    assert package.path("model.onnx").stat().st_mode & 0o222 == 0


def test_a_worker_imports_nothing_heavy_and_says_how_it_loaded(start: Start, store: Store) -> None:
    packages.embedder(store)
    server = start()
    assert server.infer("embedder", {"text": "mlos"}).status == 200
    server.wait_for(lambda: any(line["message"] == "model ready" for line in server.lines()))
    ready = next(line for line in server.lines() if line["message"] == "model ready")
    assert ready["heavy"] == []
    assert set(ready["stages"]) == {"start", "verify", "confine", "open", "warm_up"}
    assert {"no_new_privs", "rlimits", "seccomp"} <= set(ready["sandbox"])
    assert ready["threads"] == 1
    # The rest of the load is the process's own start, which is told too.
    assert sum(ready["stages"].values()) <= ready["load_seconds"] + 0.01


def test_a_package_with_a_task_nobody_knows_is_refused(start: Start, store: Store) -> None:
    packages.double(store, tasks=("divination",))
    answer = start().infer("double", {"inputs": {"x": [[1, 2, 3]]}})
    assert answer.status == 422
    assert "divination" in answer.error["message"]


class Narrow:
    """A channel through which nothing large passes, as no message over a gibibyte does through a real one."""

    def __init__(self) -> None:
        self.outcomes: list[Any] = []

    def complete(self, job: Job, outcome: Any) -> None:
        if not isinstance(outcome, MlosError):
            raise ValueError("a message of 2 GiB is larger than the limit")
        self.outcomes.append(outcome)


def test_an_answer_that_cannot_cross_costs_its_request_alone() -> None:
    channel = Narrow()
    answer = Answer("tensors", b"{}", {})
    _complete(channel, Job(1, None, 0.0, 0.0), answer)  # type: ignore[arg-type]  # it has what is used
    (outcome,) = channel.outcomes
    assert isinstance(outcome, PayloadTooLargeError)
    assert "larger than the limit" in outcome.message
