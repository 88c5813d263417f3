"""T19: an engine that looks around gets EPERM or EACCES for whatever it tries, and its worker goes on."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest
from tests.core import packages
from tests.core.conftest import Start

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
