"""How tests handle a server: its Unix socket as its owner reaches it, its workers, slow requests."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from pathlib import Path

from tests.core.conftest import Answer, Server, environment

ROW = {"inputs": {"x": [[1, 2, 3]]}}


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket, by the open folder: a test's own folder may be too long for an address."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=120)
        self._path = path

    def connect(self) -> None:
        folder = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(120)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._path.name}")
        finally:
            os.close(folder)


def socket_of(server: Server) -> Path:
    return server.home / "sockets" / f"admin-{server.port}.sock"


def administer(server: Server, verb: str, model: str) -> Answer:
    return request(server, "POST", f"/admin/models/{model}/{verb}")


def request(server: Server, method: str, path: str, body: bytes | None = None) -> Answer:
    connection = _Connection(socket_of(server))
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def slowly(n: int) -> dict[str, object]:
    """About ``2 n`` milliseconds of work for the slow model."""
    return {"inputs": {"n": n, "x": [1]}}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def run(home: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlos.core.cli", *flags]
    return subprocess.run(command, capture_output=True, text=True, env=environment(home), timeout=120)


def workers_of(server: Server) -> int:
    return len(Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split())
